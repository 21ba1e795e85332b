"""`twintrain corpus compare` and `mix` as they are typed: small runs, killed and gone on with, and what is refused."""

import json
import random

import pytest

from coretrain.config.load import load_config
from coretrain.data.prepare import documents_of
from coretrain.data.sources import open_source
from tests.support.refusal import refused
from twintrain.corpus import main
from twintrain.proxies import runs, setting
from twintrain.proxies.setting import fields_of

WORDS = [a + b for a in "bdfgklmnprst" for b in ("alo", "ine", "oru", "est", "umi", "ack")]
SMALL = ["--model.layers=1", "--model.width=16", "--model.heads=2", "--model.context=32", "--data.tokenizer=bytes"]
SMALL += ["--train.batch_size=2", "--execution.compile=off", "--execution.device=cpu"]

DATA = load_config(None, setting.SMALL).data


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two files of documents, of other words; the present folder is theirs."""
    for name, seed, words in (("a", 1, WORDS), ("b", 2, WORDS[:20])):
        choose = random.Random(seed)
        lines = [json.dumps({"text": " ".join(choose.choices(words, k=40))}) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*words):
    return main(["compare", "a.jsonl", "b.jsonl", "--updates", "4", "--output", "out", *SMALL, *words])


def mix(*words):
    return main(["mix", "a.jsonl", "b.jsonl", "--updates", "2", "--output", "out", *SMALL, *words])


@pytest.mark.whole
def test_compare_is_killed_and_goes_on(sources, capsys, monkeypatch):
    scored, seen = runs.scored, []

    def killed(stack, folder, *more):
        if len(seen) == 2:
            raise KeyboardInterrupt  # between the training and the scores of the third run
        seen.append(folder.name)
        return scored(stack, folder, *more)

    monkeypatch.setattr(setting, "scored", killed)
    with pytest.raises(KeyboardInterrupt):
        compare()
    assert seen == ["a-1337", "b-1337"]
    before = {name: (sources / "out/runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in (*seen, "a-1338")}
    monkeypatch.setattr(setting, "scored", scored)
    assert compare() == 0
    for name, when in before.items():
        assert (sources / "out/runs" / name / "metrics.jsonl").stat().st_mtime_ns == when
    printed = capsys.readouterr().out
    told = json.loads((sources / "out/compare.json").read_text())
    assert printed.splitlines()[:3] == list(told["verdicts"].values())
    assert told["updates"] == 4
    assert told["tokens_each_run"] == 4 * 2 * 32
    assert {(one["side"], one["seed"]) for one in told["curves"]} == {(s, n) for s in "AB" for n in (1337, 1338)}
    assert [one["updates"] for one in told["curves"]] == [[1, 2, 3, 4]] * 4
    every, a, b = told["results"].values()
    assert every["b_less_a"] == pytest.approx((a["b_less_a"] + b["b_less_a"]) / 2)
    assert [one["bits_per_byte"][-1] for one in told["curves"] if one["side"] == "A"] == pytest.approx(every["a"])
    assert 7 < min(every["a"]) < 9  # after 4 updates nearly all of a byte's 8 bits
    report = (sources / "out/report.md").read_text()
    assert "| b.jsonl |" in report
    assert (sources / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    # another comparison into the same folder is refused, and what lies there is left
    with refused("command/proxies-of-another", "out"):
        compare("--optimizer.lr", "0.5")
    assert json.loads((sources / "out/compare.json").read_text()) == told
    # more seeds go on with the folder, also at once with what is there
    assert compare("--seeds", "3") == 0
    assert json.loads((sources / "out/compare.json").read_text())["seeds"] == [1337, 1338, 1339]


@pytest.mark.whole
def test_three_proxies(sources, capsys):
    assert mix("--proxies", "3", "--tokens", "20000") == 0
    printed = capsys.readouterr().out
    told = json.loads((sources / "out/mix.json").read_text())
    assert told["verdict"] in printed
    assert len(told["proxies"]) == 3
    for name, tokens in zip("ab", told["training_tokens"], strict=True):
        # a small part was enough for these runs, and the whole is reckoned from it: a byte is a token
        assert (sources / f"out/data/{'ab'.index(name)}.jsonl").stat().st_size < 5000
        source, data = open_source(f"{name}.jsonl"), DATA
        train = [one.text_bytes + 1 for one in documents_of(source, data, {}) if one.split == "train"]
        assert tokens == pytest.approx(sum(train), rel=0.02)
    assert told["proxies"][0]["shares"] == pytest.approx(told["natural"], abs=1e-5)
    assert 7 < told["proxies"][0]["loss"] < 9
    for name, shares in (("natural", told["natural"]), ("best", told["best"])):
        mixture = load_config(str(sources / f"out/{name}.toml")).data.mixture
        assert [one.source for one in mixture] == ["a.jsonl", "b.jsonl"]
        assert [one.weight for one in mixture] == pytest.approx(shares, abs=1e-5)
    first = (sources / "out/runs/proxy-0002/metrics.jsonl").stat().st_mtime_ns
    assert mix("--proxies", "4", "--tokens", "20000") == 0
    more = json.loads((sources / "out/mix.json").read_text())["proxies"]
    assert more[:3] == told["proxies"]
    assert len(more) == 4
    assert (sources / "out/runs/proxy-0002/metrics.jsonl").stat().st_mtime_ns == first
    with refused("command/proxies-of-another", "out"):
        mix("--proxies", "4", "--tokens", "20000", "--seed", "1")


def test_weights_alone(sources, capsys):
    assert mix("--weights", "3,1") == 0
    assert "0.7500" in capsys.readouterr().out
    mixture = load_config(str(sources / "out/natural.toml")).data.mixture
    assert [one.weight for one in mixture] == [0.75, 0.25]
    assert not (sources / "out/runs").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--epochs", "2"], "command/mix-epochs-without-tokens"),
        (["--weights", "1,1", "--temperature", "2"], "command/mix-weights-twice"),
        (["--proxies", "2"], "command/mix-few-proxies"),
        (["b.jsonl"], "command/proxy-word"),
        (["--weights", "1"], "corpus/weights-unreadable"),
        (["--tokens", "1000000000"], "corpus/mixture-too-small"),
        (["--data.source", "x"], "command/proxy-field-set-here"),
        (["--temperature", "0"], "command/bad-arguments"),
        (["--data.format", "chat"], "command/proxy-not-text"),
    ],
)
def test_mixes_that_are_refused(sources, words, code):
    with refused(code):
        mix(*words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--seeds", "1"], "command/bad-arguments"),
        (["--train.seed", "3"], "command/proxy-field-set-here"),
        (["--checkpoint.keep", "3"], "command/proxy-field-set-here"),
        (["--train.updates", "3"], "command/updates-twice"),
        (["--model.layer", "3"], "config/unknown-field"),
        (["--held-out", "nowhere"], "data/source-not-found"),
        (["--config", "tinny"], "config/unknown-config-name"),
        (["c.jsonl"], "command/proxy-word"),
        (["--stack", "numpy"], "command/bad-arguments"),
        (["--optimizer.lr"], "command/proxy-field-without-value"),
    ],
)
def test_comparisons_that_are_refused(sources, words, code):
    with refused(code):
        compare(*words)
    assert not (sources / "out").exists()


def test_the_same_twice_and_a_folder_in_use(sources):
    with refused("command/compare-same", "a.jsonl"):
        main(["compare", "a.jsonl", "a.jsonl"])
    (sources / "out").mkdir()
    (sources / "out/precious").write_text("mine")
    with refused("command/proxies-folder-in-use", "out"):
        compare()
    assert [path.name for path in (sources / "out").iterdir()] == ["precious"]
    (sources / "out/about.json").write_text('{"key": "mine"}')
    (sources / "out/data").mkdir()
    with refused("command/proxies-folder-in-use", "out"):
        compare()
    assert (sources / "out/data").is_dir()


def test_a_folder_where_nothing_was_trained_is_free(sources):
    (sources / "empty.jsonl").write_text('{"text": " "}')
    with refused("command/held-out-empty", "empty.jsonl"):
        mix("--held-out", "empty.jsonl")
    assert mix() == 0
    copy = (sources / "out/data/0.jsonl").read_text()
    assert mix("--data.max_documents", "20") == 0  # another copy
    assert (sources / "out/data/0.jsonl").read_text() != copy


def test_a_mixture_is_of_two_that_differ(sources):
    for words in (["a.jsonl"], ["a.jsonl", "b.jsonl", "a.jsonl"]):
        with refused("command/mix-sources"):
            main(["mix", *words])


def test_fields_in_both_forms():
    assert fields_of(["--a.b=c=d", "--e.f", "-3"]) == [("a.b", "c=d"), ("e.f", "-3")]


@pytest.mark.parametrize("verb", ["compare", "mix"])
def test_help_needs_nothing(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"twintrain corpus {verb}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([verb]) == 2

"""`twintrain corpus` as a user types it; and a corpus as the source of a run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

import twintrain.corpus
from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.corpus.demo.answers import load
from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, retune
from coretrain.data.open import open_data
from coretrain.data.sources import open_source
from tests.support.commands import ROOT, environment
from tests.support.recipes import published, small_recipe, text, write_input, write_rows
from tests.support.refusal import refused
from twintrain.corpus import help_text, main, within

RECIPE = """
steps = ["gopher", "c4", "page"]
rules = ["gopher", "c4"]
filters.c4.min_sentences = 2
dedup = { bands = 6, rows = 4 }
output.documents = 7
"""


@pytest.fixture
def given(tmp_path):
    """A recipe's file and the input."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    return str(tmp_path / "mine.toml"), write_input(tmp_path / "in")


def command(*words):
    return [sys.executable, "-m", "twintrain", "corpus", *map(str, words)]


def run(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240)


def test_make_show_and_retune(given, tmp_path, capsys):
    recipe, paths = given
    out = tmp_path / "out"
    assert main([recipe, "--input", *paths, "--output", str(out), "--workers", "0"]) == 0
    first = capsys.readouterr().out
    assert "written                          42" in first
    assert (out / "report.html").is_file()
    assert main(["show", str(out)]) == 0
    assert capsys.readouterr().out == first
    assert main(["show", str(out), "--why", "https://x.example/13"]) == 0
    assert "dropped by gopher.min_words" in capsys.readouterr().out
    assert main(["retune", str(out), "--set", "filters.gopher.min_words=1", "--workers", "0"]) == 0
    again = capsys.readouterr().out
    assert again != first
    assert "gopher.min_words" not in again
    assert main(["show", str(out)]) == 0
    assert capsys.readouterr().out == again


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["web-demo"], "command/corpus-without-output", ("--output",)),
        (["web-demo", "fineweb", "--output", "x"], "command/corpus-words", ("web-demo fineweb",)),
        (["show"], "command/corpus-words", ("folder after show",)),
        (["show", "x", "--workers", "3"], "command/corpus-option", ("--workers",)),
        (["show", "x", "--workers", "0"], "command/corpus-option", ("--workers",)),
        (["show", "x", "--engine", "slurm"], "command/corpus-option", ("--engine",)),
        (["show", "x", "--set", "a=b"], "command/corpus-option", ("--set",)),
        (["retune", "x"], "command/retune-without-set", ("--set",)),
        (["retune", "x", "--input", "y", "--set", "a=b"], "command/corpus-option", ("--input",)),
        (["web-demo", "--output", "x", "--why", "u"], "command/corpus-option", ("--why",)),
        (["web-demo", "--output", "x", "--engine", "spark"], "corpus/engine-unknown", ("spark",)),
        (["web-demo", "--output", "x", "--workers", "many"], "command/bad-arguments", ("many",)),
        (["web-demo", "--output", "x", "--set", "dedup.bnds=3"], "corpus/unknown-field", ("dedup.bands",)),
    ],
)
def test_wrong_words_are_refused(words, code, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(code, *names):
        main(words)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    found = twintrain.corpus.find_spec
    monkeypatch.setattr("twintrain.corpus.find_spec", lambda name: None if name == "fastwarc" else found(name))
    with refused("command/corpus-packages-missing", "fastwarc", "twintrain[corpus]"):
        main(["web-demo", "--output", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_show_of_no_corpus_is_refused(tmp_path):
    with refused("base/json-file-missing", str(tmp_path)):
        main(["show", str(tmp_path)])


def test_help_fits_and_names_the_presets():
    words = help_text()
    assert max(map(len, words.splitlines())) <= 80
    assert "web-demo" in words


def test_a_corpus_is_a_source_of_its_documents_alone(given, tmp_path):
    _, paths = given
    out = tmp_path / "out"
    make_corpus(small_recipe(paths), out, Here, say=lambda line: None)
    source = open_source(str(out))
    texts = [text for path in sorted(out.glob("documents/*")) for text in pq.read_table(path)["text"].to_pylist()]
    assert list(source.documents()) == list(source.documents()) == texts
    assert len(texts) == 42
    assert source.size == sum(len(text.encode()) for text in texts)
    moved = tmp_path / "moved"
    out.rename(moved)
    assert open_source(str(moved)).listing == source.listing  # of what it holds, not of where or when
    fields = {"data.source": moved, "data.tokenizer": "bytes", "data.cache": tmp_path / "cache", "model.context": 8}
    data = open_data(load_config("tiny", [(name, str(value)) for name, value in fields.items()]))
    seal = json.loads((moved / "corpus.json").read_bytes())["fingerprint"]
    assert data.parts[0].corpus == seal, "the shards name what they were made of"
    assert ("corpus", f"fingerprint {seal[:16]}") in data.summary()


def damaged(out, how):
    file = out / "documents/part-00001.parquet"
    if how == "bytes":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif how == "gone":
        file.unlink()
    elif how == "more":
        (out / "documents/part-00099.parquet").write_bytes(b"x")
    elif how == "seal":
        path = out / "corpus.json"
        path.write_text(path.read_text().replace('"documents": 7', '"documents": 8', 1))
    elif how == "unsealed":
        (out / "corpus.json").unlink()
    else:
        path = out / "corpus.json"
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(
    ("how", "code", "names"),
    [
        ("bytes", "corpus/file-damaged", ("part-00001.parquet",)),
        ("gone", "corpus/files-not-sealed", ("part-00001.parquet",)),
        ("more", "corpus/files-not-sealed", ("part-00099.parquet",)),
        ("seal", "corpus/seal-fingerprint", ("corpus.json",)),
        ("unsealed", "base/json-file-missing", ("corpus.json",)),
        ("newer", "corpus/seal-too-new", ("version 2",)),
    ],
)
def test_a_damaged_or_half_corpus_is_no_source(given, tmp_path, how, code, names):
    _, paths = given
    make_corpus(small_recipe(paths), tmp_path / "out", Here, say=lambda line: None)
    damaged(tmp_path / "out", how)
    with refused(code, *names):
        list(open_source(str(tmp_path / "out")).documents())


@pytest.mark.whole
def test_a_mistake_is_one_sentence_and_exit_code_2(given, tmp_path):
    recipe, paths = given
    done = run(recipe, "--input", tmp_path / "nothing.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no file or folder ")
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "out2").mkdir()
    with open(tmp_path / "out2/.lock", "a+b") as file:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX)
        done = run(recipe, "--input", *paths, "--output", tmp_path / "out2")
    assert done.returncode == 2
    assert "is in use by" in done.stderr


@pytest.mark.whole
def test_a_full_disk_is_said_and_nothing_is_lost(given, tmp_path):
    """A file may have 20 KiB only, as on a disk that is full: then the same goes on with more room."""
    recipe, _ = given
    rows = [{"text": text(n)} for n in range(400)]
    words = [recipe, "--input", write_rows(tmp_path / "big.jsonl", rows), "--output", tmp_path / "out"]
    words += ["--workers", 1]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "limited", *command(*words)]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/corpus.json").exists()
    assert run(*words).returncode == 0


def finished(out):
    """Tasks that the ledger has."""
    return sum(1 for _ in out.glob("work/ledger/*/*.json"))


@pytest.mark.whole
def test_kills_at_any_moment_change_nothing(tmp_path):
    """Killed again and again at random moments and gone on with, the result is that of a run that nobody disturbed."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    paths = write_input(tmp_path / "in", 120, 4)
    words = [tmp_path / "mine.toml", "--input", *paths, "--set", "execution.piece_bytes=65536", "--workers", 2]
    make_corpus(small_recipe(paths, name="mine"), tmp_path / "expected", Here, say=lambda line: None)
    dice, kills = random.Random(15), 0
    for _ in range(8):
        process = subprocess.Popen(
            command(*words, "--output", tmp_path / "out"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # after some more tasks, whatever the machine's speed, and a moment that no task ends with
        goal = finished(tmp_path / "out") + dice.randint(1, 5)
        while process.poll() is None and finished(tmp_path / "out") < goal:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.05))
        kills += process.poll() is None
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.killpg(process.pid, signal.SIGKILL) if dice.random() < 0.5 else process.kill()
        process.wait()
    done = run(*words, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert kills >= 3
    assert published(tmp_path / "out") == published(tmp_path / "expected")
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".tmp-")] == []


@pytest.mark.whole
def test_the_demo_does_to_its_planted_pages_what_it_must(tmp_path):
    done = run("configs/data/web-demo.toml", "--output", tmp_path / "demo", "--workers", 2)
    assert done.returncode == 0, done.stderr
    answers = load(tmp_path / "demo/input")
    kept = set(pq.read_table(tmp_path / "demo/documents")["id"].to_pylist())
    rows = pq.read_table(tmp_path / "demo/dropped").to_pylist()
    reason = {row["id"]: row["rule"] for row in rows}
    wrong = []
    for plant in answers.plants:
        found = "kept" if plant.id in kept else reason.get(plant.id, "not read")
        right = {
            "kept": found == "kept",
            "replaced": found == "kept",
            "distinct": found == "kept",
            "dropped": found not in ("kept", "not read"),
            "language": found.startswith("language."),
            "trouble": found == "not read",
            "duplicate": found in ("kept", "exact", "near"),
            "either": found in ("kept", "near"),
        }[plant.outcome]
        if not right:
            wrong.append((plant.kind, plant.url, plant.outcome, found))
    assert wrong == []
    groups = {plant.group for plant in answers.with_outcome("duplicate")}
    for group in groups:
        members = [plant for plant in answers.plants if plant.group == group]
        assert sum(plant.id in kept for plant in members) == 1, members
    texts = "\n".join(pq.read_table(tmp_path / "demo/documents")["text"].to_pylist())
    for plant in answers.with_outcome("replaced"):
        for secret in (*plant.facts["emails"], *plant.facts["public"]):
            assert secret.endswith(".example.org") or secret not in texts  # what is reserved for examples names nobody
    page = Path(tmp_path / "demo/report.html").read_text()
    assert "web-demo" in page


@pytest.mark.parametrize("name", ["recipe.json", "corpus.json", "work/outcome.json", "work/plan.json"])
def test_a_damaged_file_of_a_corpus_is_named(given, tmp_path, name, capsys):
    """Cut, emptied, another kind of JSON, or a byte of it another: one sentence, or it works as before."""
    _, paths = given
    make_corpus(small_recipe(paths), tmp_path / "out", Here, say=lambda line: None)
    path = tmp_path / "out" / name
    whole, dice = path.read_bytes(), random.Random(name)
    odd = [b"", b"{}", b"[]", b"null", b'{"recipe": 3, "told": 4}', b"\xff", whole[: len(whole) // 2], b"[" * 100_000]
    for _ in range(12):
        at = dice.randrange(len(whole))
        odd.append(whole[:at] + bytes([dice.randrange(256)]) + whole[at + 1 :])
    asked = {
        "recipe.json": lambda: retune(tmp_path / "out", lambda before: before, Here, lambda line: None),
        "corpus.json": lambda: list(open_source(str(tmp_path / "out")).documents()),
        "work/outcome.json": lambda: main(["show", str(tmp_path / "out")]),
        "work/plan.json": lambda: retune(tmp_path / "out", lambda before: before, Here, lambda line: None),
    }[name]
    said = []
    for raw in odd:
        path.write_bytes(raw)
        try:
            asked()
        except UserError as error:
            said.append(str(error))
        path.write_bytes(whole)
    assert len(said) >= 8
    assert [one for one in said if str(tmp_path / "out") not in one] == []


def test_a_narrow_terminal_breaks_lines_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "stage   1,445\n\n     1,021  gopher.words: fewer than 50 words"
    assert within(text, SimpleNamespace(isatty=lambda: False)) == text, "a file or a pipe takes whole lines"
    broken = ["stage   1,445", "", "     1,021  gopher.words:", "            fewer than 50", "            words"]
    assert within(text, SimpleNamespace(isatty=lambda: True)).splitlines() == broken

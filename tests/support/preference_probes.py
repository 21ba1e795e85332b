"""What rows of preferences must come to: checks with answers known by hand, which raise AssertionError.

What is checked is imported where it is used, so that a planted bug is in it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from tests.support.corpora import write_rows
from tests.support.preferring import (
    BARE,
    END,
    IGNORED,
    config_of,
    everything,
    many,
    many_labels,
    opened,
    pair,
    rows_of,
    sequences,
)
from tests.support.refusal import refused

Probe = Callable[[Path], None]
PROBES: dict[str, Probe] = {}


def probe(check: Probe) -> Probe:
    """A check, by its name."""
    PROBES[check.__name__] = check
    return check


@probe
def every_form_comes_to_the_same_pair(folder: Path) -> None:
    """The forms of TRL, OpenAI, Argilla, UltraFeedback, LLaMA-Factory and HH-RLHF; the better answer first."""
    asked, good, bad = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "A"), ("assistant", "B")))
    forms = [
        {"prompt": "q", "chosen": "A", "rejected": "B"},
        {"question": "q", "chosen": "A", "rejected": "B", "system": ""},
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"rejected": [asked, bad], "chosen": [asked, good]},
        {"prompt": "q", "chosen": [asked, good], "rejected": [asked, bad], "messages": [asked, good]},
        {"prompt": "q", "chosen": [asked, good], "rejected": [asked, bad], "score_chosen": 2.0, "score_rejected": 1.0},
        {"instruction": "q", "chosen": [good], "rejected": [bad]},
        {"input": {"messages": [asked]}, "preferred_output": [good], "non_preferred_output": [bad]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: A", "rejected": "\n\nHuman: q\n\nAssistant: B"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " A", "rejected": " B"},
    ]
    from coretrain.data.preferences.rows import pair_of

    for row in forms:
        found, _ = pair_of(row, "here")
        said = [[(one["role"], one["content"].strip()) for one in talk.messages] for talk in found.answers]
        assert said == [[("user", "q"), ("assistant", "A")], [("user", "q"), ("assistant", "B")]], row
        assert found.asked == 1


@probe
def a_row_by_hand(folder: Path) -> None:
    """Tokens, labels, positions and segments of two pairs in a row of 20."""
    _, data = opened(
        folder,
        [pair(0, "ab", "c"), pair(1, "d", "ef"), pair(2, "g", "h")],
        model__context=20,
        data__validation_fraction=0.01,
    )
    rows = [row for part in data.parts for split in (part.train, part.validation) for row in rows_of(split)]
    row = next(row for row in rows if row.planes["pair_share"].tolist() == [1, 1])
    first, second = sequences(row)[:2], sequences(row)[2:]
    by_prompt = {
        "0": [("0:ab|", "ab|"), ("0:c|", "c|")],
        "1": [("1:d|", "d|"), ("1:ef|", "ef|")],
        "2": [("2:g|", "g|"), ("2:h|", "h|")],
    }
    assert first == by_prompt[first[0][0][0]]
    assert second == by_prompt[second[0][0][0]]
    sizes = [len(text) for text, _ in (*first, *second)]
    assert row.segments.tolist() == [n for n, size in enumerate(sizes) for _ in range(size)] + [-1] * (20 - sum(sizes))
    assert row.positions.tolist() == [p for size in sizes for p in range(size)] + list(range(20 - sum(sizes)))
    at = 0
    for text, learnt in (*first, *second):
        labels = [IGNORED] * (len(text) - len(learnt) - 1) + [END if c == "|" else ord(c) for c in learnt] + [IGNORED]
        assert row.labels[at : at + len(text)].tolist() == labels, (
            "of the prompt nothing, of the answer all, its end too"
        )
        at += len(text)
    assert set(row.labels[at:]) <= {IGNORED}
    assert not row.tokens[at:].any()


@probe
def no_token_crosses_the_boundary(folder: Path) -> None:
    """Two signs that form one token stay two where one ends the prompt and the other begins the answer."""
    from coretrain.data.preferences.encode import PreferenceEncoder
    from coretrain.data.preferences.rows import pair_of
    from coretrain.tokenizers.chat_template import Template
    from coretrain.tokenizers.tokenizer import Tokenizer

    ranks = {bytes([byte]): byte for byte in range(256)} | {b"==": 256, b"=b": 257}
    tokenizer = Tokenizer("merging", ranks, r"[\s\S]+", 258)
    encoder = PreferenceEncoder(Template(BARE, "none", tokenizer), 64, "refuse", "pairs")
    row = {"prompt": "a=", "chosen": "=b", "rejected": "c=="}
    facts = encoder.encode(pair_of(row, "here")[0].dump()).tolist()
    a, c, equals, both, joined, end = ord("a"), ord("c"), ord("="), 256, 257, 258
    prompt, chosen, rejected = [a, equals], [joined, end], [c, both, end]
    assert facts == [0, *(4 * i for i in prompt), *(4 * i + 1 for i in chosen), *(4 * i + 3 for i in rejected)]


@probe
def the_prompt_is_one_in_both_answers(folder: Path) -> None:
    """All of a dialogue before the answer is read and not learnt, its earlier answers too."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {
            "chosen": [*talk, {"role": "assistant", "content": f"x{n}"}],
            "rejected": [*talk, {"role": "assistant", "content": "y"}],
        }
        for n in range(3)
    ]
    rows = [json.loads(json.dumps(row).replace('"a"', f'"a{n}"')) for n, row in enumerate(rows)]
    _, data = opened(folder, rows, model__context=40)
    assert everything(data) == [[(f"a{n}b|cx{n}|", f"x{n}|"), (f"a{n}b|cy|", "y|")] for n in range(3)]


@probe
def a_prompt_is_in_one_split_alone(folder: Path) -> None:
    """20 prompts with 6 pairs each: none is in training and validation, and no pair is lost."""
    rows = [{"prompt": f"prompt {n % 20}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(120)]
    _, data = opened(folder, rows, model__context=60)
    prompts = [
        {
            text[: text.index("good") if "good" in text else text.index("bad")]
            for row in rows_of(split)
            for text, _ in sequences(row)
        }
        for split in (data.train, data.validation)
    ]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 20
    assert len(everything(data)) == 120


@probe
def nothing_is_cut_short(folder: Path) -> None:
    """A pair that just fills a row is taken whole; one token more is refused by its line, or counted as dropped."""
    fits, longer = pair(7, "a" * 9, "b" * 9), pair(8, "a" * 9, "b" * 10)  # 2 x (2 + 1) + 18 and 19
    rows = [*many(8)[:7], fits]
    _, data = opened(folder, rows, model__context=24)
    assert [("7:" + "a" * 9 + "|", "a" * 9 + "|"), ("7:" + "b" * 9 + "|", "b" * 9 + "|")] in everything(data)
    with refused("data/sample-refused", "line 9", "25 tokens", "misfits = drop"):
        opened(folder, [*rows, longer], model__context=24)
    _, dropped = opened(folder, [*rows, longer], model__context=24, data__misfits="drop")
    assert everything(dropped) == everything(data)
    told = dict(dropped.summary())
    assert "1 longer than a row" in told["train"] + told["validation"]


@probe
def pairs_that_cannot_be_used_are_counted(folder: Path) -> None:
    """Equal answers, empty ones, an empty prompt, prompts that differ, scores the wrong way round, equal tokens."""
    user = [{"role": "user", "content": "u"}]
    bad = [
        (pair(50, "same", "same"), "data/pair-answers-equal", "can't be used"),
        (pair(51, "", "no"), "data/answer-empty", "can't be used"),
        (pair(52) | {"prompt": " "}, "data/pair-prompt-empty", "can't be used"),
        (
            {"chosen": [*user, {"role": "assistant", "content": "x"}], "rejected": [{"role": "user", "content": "v"}]},
            "data/pair-prompts-differ",
            "can't be used",
        ),
        (pair(53, score_chosen=1, score_rejected=2), "data/pair-scores-contradict", "can't be used"),
        (pair(54, "a" * 30, "b"), "data/sample-refused", "longer than a row"),
    ]
    good = many(8)
    _, whole = opened(folder, good, model__context=32)
    for row, code, words in bad:
        with refused(code, "line 9", "misfits = drop"):
            opened(folder, [*good, row], model__context=32)
        _, data = opened(folder, [*good, row], model__context=32, data__misfits="drop")
        assert everything(data) == everything(whole)
        told = dict(data.summary())
        assert f"rows dropped: 1 {'of a row that ' * (words[0] == 'c')}{words}" in told["train"] + told["validation"]


@probe
def planes_are_as_wide_in_every_row(folder: Path) -> None:
    """One number of slots for the whole data set, validation and all parts of a mixture, so that programs are made
    once."""
    (folder / "more").mkdir()
    write_rows(folder / "more" / "b.jsonl", many(7))
    config = config_of(folder, many(40), model__context=60)
    from coretrain.data.open import open_data

    mixed = [{"source": str(folder / "rows.jsonl"), "weight": 3.0}, {"source": str(folder / "more"), "weight": 1.0}]
    config = type(config).model_validate(config.model_dump() | {"data": config.data.model_dump() | {"mixture": mixed}})
    data = open_data(config, lambda line: None)
    splits = [split for part in data.parts for split in (part.train, part.validation)]
    widths = {row.planes["pair_share"].shape for split in splits for row in rows_of(split)}
    assert widths == {(max(map(len, itertools.chain(*(split.packed for split in splits)))),)}


@probe
def margins_stand_beside_their_pairs(folder: Path) -> None:
    """float64, whole; where no pair has one, or the objective reads none, there is no plane."""
    rows = [pair(n, "y" * (1 + n % 3), margin=n / 7) for n in range(20)]
    for objective in ("dpo", "simpo"):
        _, data = opened(folder, rows, model__context=60, train__objective=objective)
        told = dict(data.summary()).get("not read", "")
        if objective == "simpo":
            assert "margin" in told
        found = {}
        for split in (data.parts[0].train, data.parts[0].validation):
            for row in rows_of(split):
                assert ("margin" in row.planes) == (objective == "dpo")
                for place, share in enumerate(row.planes["pair_share"]):
                    if share and objective == "dpo":
                        number = int(sequences(row)[2 * place][0].split(":")[0])
                        found[number] = float(row.planes["margin"][place])
        assert found == ({n: n / 7 for n in range(20)} if objective == "dpo" else {})
    assert "margin" not in next(rows_of(opened(folder, many(9), model__context=60)[1].parts[0].train)).planes


@probe
def labels_stand_beside_their_answers(folder: Path) -> None:
    """Which answers are good, and that each stands behind its own prompt."""
    _, data = opened(folder, many_labels(20), data__format="labels", train__objective="kto", model__context=60)
    found = {}
    for part in data.parts:
        for split in (part.train, part.validation):
            for row in rows_of(split):
                for place, share in enumerate(row.planes["sequence_share"]):
                    if share:
                        text, learnt = sequences(row)[place]
                        found[text] = (learnt, row.planes["desirable"][place])
    assert found == {f"{n}:{'ab' * (1 + n % 4)}|": ("ab" * (1 + n % 4) + "|", float(n % 3 > 0)) for n in range(20)}


@probe
def mismatched_answers_are_others(folder: Path) -> None:
    """Each prompt with the whole answer to another prompt, where prompts come twice and rows are short."""
    rows = [{"prompt": f"{n // 2:02}:", "completion": "x" * (1 + n % 7) + str(n % 7), "label": True} for n in range(40)]
    rows.append({"prompt": "9" * 25 + ":", "completion": "z", "label": True})  # nothing else fits behind it
    _, data = opened(folder, rows, data__format="labels", train__objective="kto", model__context=28)
    for split, window in ((s, w) for p in data.parts for s in (p.train, p.validation) for w in range(s.windows(28))):
        own, other = split.read(window, 28), split.mismatched(window, 28)
        for place, (mine, theirs) in enumerate(zip(sequences(own), sequences(other), strict=True)):
            prompt = mine[0].split(":")[0]
            alone = len(prompt) > 20
            assert other.planes["sequence_share"][place] == (not alone)
            assert theirs[0] == f"{prompt}:" + theirs[1]
            whole = ["z|", *("x" * (1 + n) + f"{n}|" for n in range(7))]
            assert theirs[1] in ([""] if alone else whole)
        partners = [(n, split.partners[n]) for n in split.packed[window] if split.partners[n] >= 0]
        assert all(split.facts(n)[0].tolist() != split.facts(m)[0].tolist() for n, m in partners), "to another prompt"

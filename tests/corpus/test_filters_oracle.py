"""Verdicts equal to datatrove's, document for document and rule by rule, in `counting="datatrove"`; and how many the
default decides otherwise, which `pytest -s` prints.

datatrove needs an environment of its own: `python -m venv E && E/bin/pip install datatrove==0.10.1 spacy regex`, then
`TWINTRAIN_DATATROVE_PYTHON=E/bin/python pytest -m slow tests/corpus/test_filters_oracle.py`.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from coretrain.corpus.demo.make import make_demo
from coretrain.corpus.document import Batch, Document, Page
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.filters.limits import SETS
from coretrain.corpus.readers.open import plan, read
from coretrain.corpus.rules import first_broken
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.repetition import GopherRepetition
from tests.support import datatrove_oracle
from tests.support.near_limits import near_limits
from tests.support.plain_rules import random_texts

PYTHON = os.environ.get("TWINTRAIN_DATATROVE_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TWINTRAIN_DATATROVE_PYTHON names no interpreter that has datatrove"),
]
REASONS = {
    "gopher_short_doc": "min_words", "gopher_long_doc": "max_words",
    "gopher_below_avg_threshold": "min_mean_word_length", "gopher_above_avg_threshold": "max_mean_word_length",
    "gopher_too_many_hashes": "max_hash_ratio", "gopher_too_many_ellipsis": "max_ellipsis_ratio",
    "gopher_too_many_bullets": "max_bullet_lines", "gopher_too_many_end_ellipsis": "max_ellipsis_lines",
    "gopher_below_alpha_threshold": "min_alpha_words", "gopher_enough_stop_words": "min_stop_words",
    "dup_para_frac": "max_duplicate_paragraphs", "dup_para_char_frac": "max_duplicate_paragraph_characters",
    "dup_line_frac": "max_duplicate_lines", "dup_line_char_frac": "max_duplicate_line_characters",
    "line_punct_ratio": "min_punctuated_lines", "short_line_ratio": "max_short_lines",
    "char_dup_ratio": "max_duplicate_line_characters", "list_ratio": "max_newlines_per_word", "empty": "min_lines",
    "too_few_sentences": "min_sentences", "lorem_ipsum": "max_lorem_ipsum", "curly_bracket": "max_curly", "": "",
    **{f"top_{n}_gram": f"max_top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_{n}_gram" for n in range(5, 11)},
}  # fmt: skip


NAMES = ("gopher", "gopher_repetition", "fineweb", "c4", "c4_fineweb")


def documentation(count: int) -> list[str]:
    """Texts of this Python's documentation strings, random ones, and such with lines repeated, cut and decorated."""
    draw = random.Random(5)
    texts = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        parts = [text for one in ast.walk(tree) if isinstance(one, kinds) and (text := ast.get_docstring(one))]
        texts += ["\n\n".join(parts[at : at + 6])[:6000] for at in range(0, len(parts), 6)]
    draw.shuffle(texts)
    texts = texts[: count // 2]
    for at in range(count // 4):
        lines = texts[at % len(texts)].split("\n")
        change = draw.choice(["repeat", "bullets", "ellipses", "hashes", "ends", "numbers"])
        if change == "repeat":
            lines += lines[: max(1, int(len(lines) * draw.random() * 0.6))]
        prefix = {"bullets": "- ", "hashes": "# # "}.get(change, "")
        suffix = {"ellipses": "...", "ends": ".", "numbers": " 12 + 3 = 15;"}.get(change, "")
        texts.append("\n".join(prefix + line + (suffix if draw.random() < 0.5 else "") for line in lines))
    texts += random_texts(11, count - len(texts), 120)
    return [text for text in texts if text.strip()]


def demo(folder: Path, count: int) -> list[str]:
    """Texts of the demo's crawl, of pages from all over it."""
    answers = make_demo(folder)
    items = [one for piece in plan([str(folder / name) for name in answers.warc]) for one in read(piece)]
    pages = [one for one in items if isinstance(one, Page)]
    return [Extractor().document(page).text for page in pages[:: max(1, len(pages) // count)]]


def judged(texts: list[str], folder: Path) -> tuple[list[dict], dict[str, int]]:
    """What datatrove says of each text, and how many sentences it sees in lines."""
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    program = [PYTHON, datatrove_oracle.__file__, str(folder / "texts.json"), str(folder / "verdicts.json")]
    subprocess.run(program, check=True, timeout=3600, env={**os.environ, "PYTHONPATH": ""})
    verdicts = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    return verdicts["rows"], verdicts["sentences"]


def decided(step, texts: list[str]) -> tuple[list[str], list[str]]:
    """The rule that drops each text, and the texts after the step."""
    after = step.run(Batch([Document(str(at), text) for at, text in enumerate(texts)]))
    rules = [limit.rule() for limit in SETS[step.name]]
    broken = first_broken(rules, after.signals, len(texts))
    return [rules[at].name.partition(".")[2] if at >= 0 else "" for at in broken], after.texts


@pytest.mark.parametrize("kind", ["documentation", "demo", "limits"])
def test_verdicts_are_datatroves(kind, tmp_path):
    found = {
        "documentation": lambda: documentation(1600),
        "demo": lambda: demo(tmp_path, 700),
        "limits": near_limits,
    }[kind]()
    texts = [text for text in dict.fromkeys(found) if text.strip()]
    assert len(texts) > 400
    rows, sentences = judged(texts, tmp_path)
    words = {text: row["words"] for text, row in zip(texts, rows, strict=True)}

    def split(strings):
        return [[tuple(pair) for pair in words[string]] for string in strings]

    def counted(lines):
        return [sentences.get(line, 0) for line in lines]

    theirs = {name: [REASONS[row[name]] for row in rows] for name in NAMES}
    same = {"counting": "datatrove", "splitter": split}
    steps = [Gopher(**same), GopherRepetition(**same), FineWeb(**same)]
    steps += [C4(counting="datatrove", sentences=counted, terminal_punctuation=one) for one in (True, False)]
    for name, step in zip(NAMES, steps, strict=True):
        ours, after = decided(step, texts)
        pairs = enumerate(zip(ours, theirs[name], strict=True))
        assert [(at, a, b) for at, (a, b) in pairs if a != b] == [], name
        kept = [at for at, row in enumerate(rows) if row[name] == ""]
        assert [at for at in kept if after[at] != (rows[at][f"{name}_text"] or texts[at])] == [], name
    defaults = [Gopher(), GopherRepetition(), FineWeb(), C4(), C4(terminal_punctuation=False)]
    print(f"\n{kind}: {len(texts)} texts")
    for name, step in zip(NAMES, defaults, strict=True):
        ours, _ = decided(step, texts)
        drops = Counter(theirs[name])
        turned = Counter(f"{a or 'kept'} for {b or 'kept'}" for a, b in zip(ours, theirs[name], strict=True) if a != b)
        other = sum((a == "") != (b == "") for a, b in zip(ours, theirs[name], strict=True))
        print(f"  {name}: datatrove keeps {drops.pop('', 0)}, drops {dict(drops)}")
        print(f"    decided otherwise {other}, another rule {turned.total() - other}: {dict(turned)}")
    if kind == "limits":
        reasons = {reason for name in NAMES for reason in theirs[name]}
        assert set(REASONS.values()) - reasons == {"min_lines"}  # every rule drops one; blank texts aren't looked at

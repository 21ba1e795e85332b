"""datatrove's verdicts on texts, computed by an interpreter that has it: run as a program, it imports nothing of ours.

    PYTHON datatrove_oracle.py TEXTS.json VERDICTS.json

reads a list of texts, and writes for each its words as (start, end), the verdict of each filter, and C4's edited texts;
and how many sentences each line has that C4 keeps. English, all defaults.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def judge(texts: list[str]) -> dict[str, Any]:
    """The verdicts of datatrove on texts that aren't blank."""
    filters = importlib.import_module("datatrove.pipeline.filters")
    c4 = importlib.import_module("datatrove.pipeline.filters.c4_filters")
    document = importlib.import_module("datatrove.data").Document
    english = importlib.import_module("datatrove.utils.word_tokenizers").load_word_tokenizer("en")
    sentences: dict[str, int] = {}
    split = c4.split_into_sentences

    def noted(line: str, language: str) -> list[str]:
        found = split(line, language)
        sentences[line] = len(found)
        return found

    c4.split_into_sentences = noted
    rules = {
        "gopher": filters.GopherQualityFilter(),
        "gopher_repetition": filters.GopherRepetitionFilter(),
        "fineweb": filters.FineWebQualityFilter(),
        "c4": filters.C4QualityFilter(),
        "c4_fineweb": filters.C4QualityFilter(filter_no_terminal_punct=False),
    }
    rows = []
    for number, text in enumerate(texts):
        with english.tokenizer.memory_zone():
            spans = [(one.idx, one.idx + len(one)) for part in english._do_tokenize(text) for one in part]
        row: dict[str, Any] = {"words": [(start, end) for start, end in spans if text[start:end].strip()]}
        for name, rule in rules.items():
            one = document(text=text, id=str(number))
            verdict = rule.filter(one)
            row[name] = "" if verdict is True else verdict[1]
            row[f"{name}_text"] = one.text if one.text != text else None
        rows.append(row)
    return {"rows": rows, "sentences": sentences}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as given:
        everything = json.load(given)
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        json.dump(judge(everything), out)

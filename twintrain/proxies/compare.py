"""Train the same small GPT on two corpora, and say which is better.

Usage: twintrain corpus compare A B [options] [--section.field VALUE ...]

A and B are what --data.source of a run takes (a corpus, a file or folder, stdlib),
or a .toml file with the mixture of a run. Each is trained on with the same
seeds, model, tokenizer and number of tokens; all models are then measured on
the same held-out documents, in bits per byte.

  --seeds N         seeds of each, at least 2 (2)
  --updates N       updates of each run (200)
  --config NAME     a preset or a .toml file (tiny, of 16 rows)
  --held-out TEXT   documents to measure on, as A and B are given: the text that
                    you care about. Else what is held out of each source, all
                    of one weight; each side does best on its own kind of text
  --stack NAME      torch (the default) or jax
  --output DIR      an empty folder, or one to go on with (runs/compare-...)

Finished runs aren't trained again. DIR gets compare.json, report.md and
curves.png.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coretrain.base.errors import Options, UserError
from coretrain.base.files import write_atomically
from coretrain.base.help import Fitted, fitted
from coretrain.base.numbers import whole_number
from twintrain.proxies.paired import Difference, Scores, difference, verdict
from twintrain.proxies.report import comparison, curves
from twintrain.proxies.runs import say
from twintrain.proxies.setting import Setting, add_options, open_setting, save
from twintrain.proxies.sides import Side, side_of

PROGRAM = "twintrain corpus compare"
FIRST_SEED = 1337


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    parser = Options(prog=program, formatter_class=Fitted, add_help=False, allow_abbrev=False)
    parser.add_argument("sides", nargs=2)
    parser.add_argument("--seeds", type=whole_number(2, 1000), default=2)
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Train what isn't yet, measure, write, and print the verdict. Raises `UserError`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help"} & set(words):
        print(fitted((__doc__ or "").replace(PROGRAM, program)))
        return 0 if words else 2
    given, rest = options(program).parse_known_args(words)
    sides = [side_of(word) for word in given.sides]
    if sides[0].parts == sides[1].parts:
        raise UserError("command/compare-same", f"A and B are both {given.sides[0]}: give two that differ")
    setting = open_setting("compare", given, rest, sides)
    seeds = [FIRST_SEED + number for number in range(given.seeds)]
    runs: dict[tuple[str, int], Any] = {}
    for seed in seeds:
        for letter, side in zip("AB", sides, strict=True):
            say(f"{letter} ({side.name}), seed {seed}: run {len(runs) + 1} of {2 * len(seeds)}")
            runs[letter, seed] = setting.run(f"{letter.lower()}-{seed}", side, seed)
    told = outcome(setting, sides, seeds, runs)
    save(setting.folder, "compare.json", told)
    curves(setting.folder / "curves.png", told["curves"])
    write_atomically(setting.folder / "report.md", comparison(told))
    print("\n".join([*told["verdicts"].values(), f"{setting.folder / 'report.md'}"]))
    return 0


def outcome(
    setting: Setting, sides: Sequence[Side], seeds: Sequence[int], runs: Mapping[tuple[str, int], Any]
) -> dict[str, Any]:
    """All that was measured, as JSON: on each held-out text, and on all together."""
    texts = setting.texts
    last = {letter: [runs[letter, seed]["bits"][-1] for seed in seeds] for letter in "AB"}
    scores = [
        Scores(np.array(text.sizes, np.float64), *(np.array([bits[at] for bits in last[one]]) for one in "AB"))
        for at, text in enumerate(texts)
    ]
    found: dict[str, Difference] = {}
    if len(texts) > 1:
        found["all held-out texts, of one weight"] = difference(scores)
    found |= {text.name: difference([one]) for text, one in zip(texts, scores, strict=True)}
    names = {"A": sides[0].name, "B": sides[1].name}
    sizes = setting.sizes()
    drawn = []
    for (letter, seed), run in runs.items():
        rates = [
            float(np.mean([sum(bits) / sum(text.sizes) for bits, text in zip(point, texts, strict=True)]))
            for point in run["bits"]
        ]
        drawn.append({"side": letter, "seed": seed, "updates": run["updates"], "bits_per_byte": rates})
    return {
        "sides": {
            letter: {
                "name": side.name,
                "sources": [
                    {
                        "source": name,
                        "weight": weight / sum(each for _, each in side.parts),
                        "training_tokens": sizes[name],
                        "epochs": setting.tokens * weight / sum(each for _, each in side.parts) / sizes[name],
                    }
                    for name, weight in side.parts
                ],
            }
            for letter, side in zip("AB", sides, strict=True)
        },
        "seeds": list(seeds),
        **setting.about(),
        "results": {name: one.plain() for name, one in found.items()},
        "verdicts": {name: f"On {name}: {verdict(one, names)}" for name, one in found.items()},
        "curves": drawn,
    }

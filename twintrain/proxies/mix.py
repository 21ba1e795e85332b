"""Weights for several sources: by their tokens, by hand, or by many small runs.

Usage: twintrain corpus mix SOURCE SOURCE ... [options] [--section.field VALUE ...]

Writes DIR/natural.toml, whose [data] mixture a run's config takes. The natural
weights are in proportion to tokens, or as --temperature or --weights say.

  --temperature T   weights ~ tokens^(1/T): 1 (the default) by tokens, more is
                    more even
  --weights 3,1     weights by hand, one for each source
  --tokens N        tokens of the run to come: no source is read more than
                    --epochs times by it
  --epochs E        (4) what is above is shared among the other sources

  --proxies N       also look for better weights: N small runs on mixtures drawn
                    at random, a regression from weights to the bits per byte of
                    held-out text, and the weights of the least expected loss,
                    DIR/best.toml, with how sure that is. More runs can be added
                    later by a larger N
  --seed S          of the drawn mixtures and the bootstrap (0)

Each small run is as twintrain corpus compare --help says: --updates, --config,
--held-out, --stack, --output DIR (runs/mix-...). Finished ones aren't trained
again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import Options, UserError
from coretrain.base.files import quoted, write_atomically
from coretrain.base.help import Fitted, fitted
from coretrain.base.numbers import real_number, whole_number
from coretrain.corpus.mixture.draw import draw, floored
from coretrain.corpus.mixture.search import Found, search
from coretrain.corpus.mixture.weights import Shares, as_config, by_hand, by_temperature, capped, epochs_of
from twintrain.proxies.report import mixtures
from twintrain.proxies.runs import say
from twintrain.proxies.setting import Setting, add_options, open_setting, save
from twintrain.proxies.sides import Side

PROGRAM = "twintrain corpus mix"
RUN_SEED = 1337
EPOCHS = 4.0
"""After some four epochs a repeated token is worth less than a new one (Muennighoff et al. 2023, arXiv:2305.16264)."""


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    parser = Options(prog=program, formatter_class=Fitted, add_help=False, allow_abbrev=False)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--temperature", type=real_number(0.01))
    parser.add_argument("--weights")
    parser.add_argument("--tokens", type=whole_number(1))
    parser.add_argument("--epochs", type=real_number(0.001))
    parser.add_argument("--proxies", type=whole_number(0, 100_000), default=0)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Write the natural weights and, if asked for, look for better ones. Raises `UserError`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help"} & set(words):
        print(fitted((__doc__ or "").replace(PROGRAM, program)))
        return 0 if words else 2
    given, rest = options(program).parse_known_args(words)
    check(given)
    names: list[str] = given.sources
    drawn_by = [given.temperature, given.weights, given.tokens, given.epochs, given.seed]
    setting = open_setting("mix", given, rest, [Side("all", tuple((name, 1.0) for name in names))], drawn_by)
    sizes = [setting.sizes()[name] for name in names]
    natural = natural_shares(given, names, sizes)
    write_mixture(setting.folder / "natural.toml", names, natural, sizes, given.tokens)
    print(_table(names, natural, sizes, given.tokens))
    if not given.proxies:
        print(setting.folder / "natural.toml")
        return 0
    caps = np.ones(len(names)) if given.tokens is None else epoch_caps(given, sizes)
    shares, losses = proxies(setting, names, natural, caps, given)
    found = search(shares, losses, natural, caps, given.seed)
    write_mixture(setting.folder / "best.toml", names, found.best, sizes, given.tokens)
    told = {"sources": names, "training_tokens": sizes, "natural": natural.tolist(), **found.plain()}
    told |= {"proxies": [{"shares": one.tolist(), "loss": loss} for one, loss in zip(shares, losses, strict=True)]}
    told |= {"verdict": verdict(found, names), "setting": setting.about()}
    save(setting.folder, "mix.json", told)
    write_atomically(setting.folder / "report.md", mixtures(told))
    print("\n".join([verdict(found, names), str(setting.folder / "report.md")]))
    return 0


def check(given: Any) -> None:
    """Refuse what contradicts itself, before anything is read."""
    count = len(given.sources)
    if count < 2 or len(set(given.sources)) < count:
        raise UserError("command/mix-sources", "a mixture is of two sources or more that differ: give them all")
    if given.temperature is not None and given.weights is not None:
        raise UserError("command/mix-weights-twice", "--temperature and --weights are given: leave one out")
    if given.epochs is not None and given.tokens is None:
        raise UserError(
            "command/mix-epochs-without-tokens", "--epochs needs --tokens N, the tokens of the run to come: give both"
        )
    if 0 < given.proxies < count + 1:
        raise UserError(
            "command/mix-few-proxies",
            f"--proxies {given.proxies}: a regression on {count} weights needs {count + 1} runs or more: give more",
        )


def natural_shares(given: Any, names: Sequence[str], sizes: Sequence[int]) -> Shares:
    """The weights to begin with, by hand or by temperature, under the cap."""
    if given.weights is not None:
        shares = by_hand(given.weights, names)
    else:
        shares = by_temperature(sizes, 1.0 if given.temperature is None else given.temperature)
    shares = floored(shares) if given.proxies else shares
    if given.tokens is None:
        return shares
    return capped(shares, sizes, given.tokens, EPOCHS if given.epochs is None else given.epochs)


def epoch_caps(given: Any, sizes: Sequence[int]) -> Shares:
    """The largest share of each source [K]."""
    epochs = EPOCHS if given.epochs is None else given.epochs
    caps: Shares = np.minimum(1.0, epochs * np.array(sizes, np.float64) / given.tokens)
    return caps


def proxies(setting: Setting, names: Sequence[str], natural: Shares, caps: Shares, given: Any) -> tuple[Shares, Shares]:
    """Mixtures [N, K] and the bits per byte [N] of a small run on each; the first is the natural one."""
    shares, losses = [], []
    for number in range(given.proxies):
        one = draw(natural, number, given.seed) if number else natural
        one = np.round(capped(one, caps, 1.0, 1.0), 6)
        parts = tuple((part["source"], part["weight"]) for part in as_config(names, one))
        say(f"proxy {number + 1} of {given.proxies}: " + ", ".join(f"{weight:.3f} {name}" for name, weight in parts))
        run = setting.run(f"proxy-{number:04d}", Side(f"proxy {number}", parts), RUN_SEED)
        loss = loss_of(setting, run)
        say(f"  {loss:.4f} bits per byte")
        shares.append(one / one.sum())
        losses.append(loss)
    return np.stack(shares), np.array(losses)


def loss_of(setting: Setting, run: Mapping[str, Any]) -> float:
    """Bits per byte of the last checkpoint, the mean of all held-out texts."""
    last = run["bits"][-1]
    return float(np.mean([math.fsum(bits) / sum(text.sizes) for bits, text in zip(last, setting.texts, strict=True)]))


def verdict(found: Found, names: Sequence[str]) -> str:
    """What the search came to, as a sentence or two."""
    low, high = found.interval
    shares = ", ".join(f"{share:.3f} {name}" for share, name in zip(found.best, names, strict=True))
    numbers = (
        f"{found.gain:+.4f} bits per byte less than the natural mixture, 95% interval {low:+.4f} to {high:+.4f}; the "
        f"regression ({found.fit.form}) misses runs left out by {found.fit.error:.4f}, their mean by "
        f"{found.mean_error:.4f}"
    )
    if found.told_apart:
        return (
            f"The best mixture by the regression is {shares}: expected {numbers}. To see it in training, compare "
            "natural.toml and best.toml."
        )
    return (
        f"No mixture is told from the natural one. The best by the regression, {shares}, is expected {numbers}. Keep "
        "the natural weights, or run more proxies or longer ones."
    )


def write_mixture(path: Path, names: Sequence[str], shares: Shares, sizes: Sequence[int], tokens: int | None) -> None:
    """`[data] mixture` as TOML."""
    lines = ["# [data] of a run's config: copy it there, or give its value to --data.mixture.", "[data]", "mixture = ["]
    reads = (
        [""] * len(names) if tokens is None else [f", {each:.2f} epochs" for each in epochs_of(shares, sizes, tokens)]
    )
    for part, size, read in zip(as_config(names, shares), sizes, reads, strict=True):
        lines.append(
            f"    {{source = {quoted(Path(part['source']))}, weight = {part['weight']:.6f}}}, # {size:,} tokens{read}"
        )
    write_atomically(path, "\n".join([*lines, "]", ""]))


def _table(names: Sequence[str], shares: Shares, sizes: Sequence[int], tokens: int | None) -> str:
    width = max(map(len, names))
    reads = (
        [""] * len(names) if tokens is None else [f"{each:8.2f} epochs" for each in epochs_of(shares, sizes, tokens)]
    )
    return "\n".join(
        f"{name:<{width}}  {share:8.4f}  {size:>15,} tokens{read}"
        for name, share, size, read in zip(names, shares, sizes, reads, strict=True)
    )

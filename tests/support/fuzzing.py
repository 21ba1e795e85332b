"""Odd inputs, made of valid ones: values, JSON, TOML, bytes; and how an input may end.

`INPUTS` in all are tried by the tests of tests/fuzz; FUZZ_INPUTS in the environment says how many others.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from coretrain.base.errors import exits_cleanly
from tests.support.nested import DEEP

INPUTS = int(os.environ.get("FUZZ_INPUTS", "500"))
SEED = int(os.environ.get("FUZZ_SEED", "20261130"))
WEIGHTS = 256
"""Of all tests together."""
SECONDS, MEMORY = 20, 2**31
"""That one input may take: the limits are far above what any takes, and far below what a machine has."""
DEEP_HERE = "@deep@"
"""Stands for `DEEP`, which json can't write."""
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 65_536, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 10**30, -(10**30), 10**4000)
FLOATS = (0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "x",
    "1",
    "-1",
    "nan",
    "true",
    "null",
    "a\nb",
    "\ud800",
    "\0",
    "\u0663",
    "..",
    "a/../b",
    "\u00e9" * 300,
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": ""}, [0] * 2000, {"a": {"b": {"c": [1]}}}, DEEP_HERE)
WORDS = (
    *("0x10", "1_000", "1e400", "1e-400", "+5", "--5", "1.", ".5", "5 # x", "9" * 19, "9" * 5000, "0x" + "f" * 5000),
    *("[]", "{}", "[1]", '{"a": 1}', "a.b", "'", '"', "[" * 3000, DEEP, "a." * 3000, "{a=" * 2000),
    *(
        "2024-01-01",
        "inf",
        "-inf",
        "none",
        "None",
        "True",
        "\udcff",
        "\x1b[31m",
        "~",
        "~nobody",
        "/dev/null",
        "=",
        "--",
    ),
)


class LateError(BaseException):
    """An input took too long."""


def odd(random: Random) -> Any:
    """A value that few expect."""
    return copy.deepcopy(random.choice(random.choice((NUMBERS, FLOATS, TEXTS, OTHERS))))


def odd_word(random: Random) -> str:
    """A word of a command line that few expect."""
    value = odd(random)
    text = random.choice(WORDS) if random.random() < 0.6 else value if isinstance(value, str) else words_of(value)
    return text.replace("\0", "")  # no command line can hold it


def words_of(value: Any) -> str:
    """A value as a user may write it."""
    with contextlib.suppress(ValueError):
        return str(value).replace(DEEP_HERE, "[" * 3000)
    return "9" * 4301


def mutated(random: Random, value: Any, times: int | None = None) -> Any:
    """A copy of what JSON can hold, with one place or several changed: kinds, keys, sizes, depth."""
    value = copy.deepcopy(value)
    for _ in range(times or random.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return odd(random)
        _change(random, *random.choice(places))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value within."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:200]:
        yield value, key
        yield from _places(value[key])


def _change(random: Random, within: Any, key: Any) -> None:
    old = within[key]
    how = random.randrange(10)
    if how < 3:
        within[key] = odd(random)
    elif how == 3:
        del within[key]
    elif how == 4 and isinstance(within, dict):
        within[random.choice((*TEXTS, f"{key}s"))] = within.pop(key)
    elif how == 5:
        within[key] = random.choice(([old], {"a": old}, [old, old], str(old)[:99]))
    elif how < 8 and (alike := [inner[one] for inner, one in _places(within) if type(inner[one]) is type(old)]):
        within[key] = copy.deepcopy(random.choice(alike))
    elif isinstance(old, bool):
        within[key] = not old
    elif isinstance(old, str):
        within[key] = random.choice((old[::-1], old * 2, old[1:], old.upper()))
    elif isinstance(old, int | float):
        within[key] = random.choice((old + 1, -old, old * 2, float(old), str(old)))
    else:
        within[key] = odd(random)


def as_json(value: Any, **options: Any) -> bytes:
    """JSON of it, numbers of thousands of digits too."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(value, **options)
    finally:
        sys.set_int_max_str_digits(limit)
    return text.replace(f'"{DEEP_HERE}"', DEEP).encode()


def as_toml(value: dict[str, Any]) -> bytes:
    """TOML of it, section by section; what TOML can't hold becomes a text, or a mistake of it."""
    lines, sections = [], []
    for key, inner in value.items():
        if isinstance(inner, dict):
            sections += [f"[{key}]", *(f"{name} = {_inline(one)}" for name, one in inner.items())]
        else:
            lines.append(f"{key} = {_inline(inner)}")
    return "\n".join([*lines, *sections]).encode(errors="surrogatepass")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    text = as_json(value).decode()
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", "null": '""'}.get(text, text)


def mutated_bytes(random: Random, raw: bytes) -> bytes:
    """A file cut off, with bits or bytes changed, pieces repeated, left out or put in."""
    for _ in range(random.choice((1, 1, 2, 5))):
        at, size = random.randrange(len(raw) + 1), random.choice((1, 1, 2, 8, 64))
        new = random.choice((b"\0", b"\xff", b"\x80", b"[", b'"', b"9", b"\n", random.randbytes(1))) * size
        raw = random.choice(
            (raw[:at], raw[:at] + new + raw[at + size :], raw[:at] + new + raw[at:], raw[:at] + raw[at + size :])
        )
    return raw


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Within `SECONDS` and `MEMORY`: LateError and MemoryError say what went beyond."""

    def late(*_: object) -> None:
        raise LateError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    if held:
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


ENDINGS: Counter[str] = Counter()
"""How many inputs of each kind were accepted and refused, said at the end where FUZZ_INPUTS asks for others."""


@atexit.register
def _tell() -> None:
    if "FUZZ_INPUTS" in os.environ and ENDINGS:
        print("\n".join(f"{what}: {count}" for what, count in sorted(ENDINGS.items())), file=sys.__stderr__)


def ends_well(what: str, do: Callable[[], object]) -> None:
    """Raise unless an input is accepted, or refused in one line with exit code 2, within the limits."""
    ENDINGS[f"{what}, {_ending(do)}"] += 1


def _ending(do: Callable[[], object]) -> str:

    def main() -> None:
        try:
            with limited():
                do()
        except MemoryError as error:  # which would be refused, too
            raise AssertionError("it takes too much memory") from error

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exits_cleanly(main)()
        except SystemExit as end:
            if not end.code:
                return "accepted"
            said = err.getvalue().splitlines()
            told = [line for line in said if line.startswith("error: ")]
            if end.code != 2 or len(told) != 1 or told != said[-1:]:
                raise AssertionError(f"it isn't refused in one line: exit code {end.code}, {said}") from None
            return "refused"
    raise AssertionError("it didn't end")


def fuzzed(weight: int) -> Callable[[Callable[[Random], None]], Callable[[], None]]:
    """A test of `weight` parts in `WEIGHTS` of the inputs, each made by the random numbers that it is given."""

    def decorate(test: Callable[[Random], None]) -> Callable[[], None]:
        checks = settings(
            max_examples=max(1, round(INPUTS * weight / WEIGHTS)),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        return seed(SEED)(checks(given(st.randoms(use_true_random=False))(test)))  # type: ignore[return-value]  # hypothesis types what its decorators give as Any

    return decorate


@contextlib.contextmanager
def replaced(path: Path, raw: bytes) -> Iterator[None]:
    """A file with another content, for a while."""
    before = path.read_bytes()
    path.write_bytes(raw)
    try:
        yield
    finally:
        path.write_bytes(before)


def damaged(random: Random, path: Path, sealed: Callable[[Any], Any] = lambda value: value) -> bytes:
    """What becomes of a file: its JSON with other values in it, its lines of JSON, or its bytes.

    `sealed` puts a checksum over the values right again, half of the time.
    """
    raw = path.read_bytes()
    if path.suffix not in (".json", ".jsonl") or random.random() < 0.2:
        return mutated_bytes(random, raw)
    if path.suffix == ".json":
        value = mutated(random, json.loads(raw))
        with contextlib.suppress(Exception):
            value = sealed(value) if random.random() < 0.5 else value
        return as_json(value)
    rows = [json.loads(line) for line in raw.splitlines()]
    return b"\n".join(map(as_json, mutated(random, rows))) + b"\n"

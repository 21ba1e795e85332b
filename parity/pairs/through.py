"""Taps in JAX through jit, checkpoint, scan and vmap: the function is traced once, and opened where taps lie.

A tap that is met while JAX traces becomes an equation of its own, `mark`, in the traced program (jaxpr). The program is
then evaluated equation by equation: a call that holds a mark is entered, a scan that holds one is unrolled, and each
mark is a `tap` at the top. Under vmap the mapped axis comes first. Nothing else is changed: calls without marks, and
functions with derivatives of their own, are bound as they were traced.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from coretrain.contract.taps import tap, tapped

ENTERED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat")
"""Calls that are the same entered: what they change is when and where something is computed."""
NARROW = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
"""Floating dtypes below float64, the widest first."""

_mark = jex.Primitive("twintrain_tap")
_mark.def_impl(lambda value, *, name: value)
_mark.def_abstract_eval(lambda value, *, name: value)
mlir.register_lowering(_mark, lambda context, value, *, name: [value])
ad.primitive_jvps[_mark] = lambda primals, tangents, *, name: (_mark.bind(primals[0], name=name), tangents[0])
batching.primitive_batchers[_mark] = lambda values, axes, *, name: (
    _mark.bind(jnp.moveaxis(values[0], axes[0], 0), name=name),
    0,
)


def numbered(name: str, met: Counter[str]) -> str:
    """The name of a module's call, whose taps end in @: the first has the path alone, later ones @1, @2, ..."""
    if not re.search(r"@(?=\[|$)", name):
        return name
    name = re.sub(r"@(?=\[|$)", "", name)
    met[name] += 1
    return name if met[name] == 1 else f"{name}@{met[name] - 1}"


def mark(name: str, value: Any) -> Any:
    """The tap of a function that is being traced."""
    return _mark.bind(value, name=name)


Note = Callable[[str, list[Any], list[Any]], None]


class Opened:
    """`function(*examples)` traced with its taps; called with arrays of the same shapes, it taps at the top.

    `closed` are taps that stay inside what isn't entered, each with the reason. `names` gives taps other names; `only`
    are the names, then, of those that count (unset: all).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *examples: Any,
        names: Mapping[str, str] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self.names, self.only = names or {}, only
        jax.clear_caches()  # what was traced before would call no tap
        with tapped(mark):
            self.program, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
        self.outputs = jax.tree.structure(shape)
        self.closed: dict[str, str] = {}
        for name, reason in _closed(self.program.jaxpr):
            self.closed[name] = reason
        self._holds: dict[int, bool] = {}
        self._met: Counter[str] = Counter()
        self._note: Note | None = None
        self._outer = ""

    def __call__(self, *arguments: Any, note: Note | None = None) -> Any:
        """The function's output. `note` is told of each operation: its line, what it is given and what it makes."""
        leaves, self._met, self._note = jax.tree.leaves(arguments), Counter(), note
        outputs = self._evaluate(self.program.jaxpr, self.program.consts, leaves, "")
        return jax.tree.unflatten(self.outputs, outputs)

    def _evaluate(self, program: Any, constants: Any, arguments: Any, place: str) -> list[Any]:
        values: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else values[atom]

        values.update(zip(program.constvars, constants, strict=True))
        values.update(zip(program.invars, arguments, strict=True))
        for equation in program.eqns:
            given, kind = [read(atom) for atom in equation.invars], equation.primitive
            if kind is _mark:
                name = numbered(equation.params["name"] + place, self._met)
                name = self.names.get(name, name)
                made = [tap(name, given[0]) if self.only is None or name in self.only else given[0]]
            elif kind.name not in (*ENTERED, "scan") or not (self._note or self._marked(equation)):
                with equation.ctx.manager:
                    made = kind.bind(*given, **kind.get_bind_params(equation.params))
                made = made if kind.multiple_results else [made]
                if self._note:
                    self._note(_line(equation) or self._outer, given, made)
            elif kind.name == "scan":
                made = self._unrolled(equation.params, given, place)
            else:
                before, self._outer = self._outer, _line(equation) or self._outer if self._note else ""
                made = self._evaluate(*_inner(equation.params), given, place)
                self._outer = before
            values.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in program.outvars]

    def _unrolled(self, params: dict[str, Any], given: list[Any], place: str) -> list[Any]:
        constants, carry = params["num_consts"], params["num_carry"]
        fixed, state, rows = given[:constants], given[constants : constants + carry], given[constants + carry :]
        made: dict[int, list[Any]] = {}
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            out = self._evaluate(*_inner(params), [*fixed, *state, *(row[i] for row in rows)], f"{place}[{i}]")
            state, made[i] = out[:carry], out[carry:]
        columns = zip(*(made[i] for i in order), strict=True)
        return [*state, *(jnp.stack(column) for column in columns)]

    def _marked(self, equation: Any) -> bool:
        if id(equation) not in self._holds:
            self._holds[id(equation)] = any(True for _ in _marks(equation.params))
        return self._holds[id(equation)]

    def ways(self, dtype: str) -> dict[str, Way]:
        """Of each tap (without its number in a scan), how it came to be; `dtype` is that of the run."""
        return {name.removesuffix("@"): way for name, way in self._followed(dtype)[1].items()}

    def whole(self, dtype: str) -> Way:
        """How all of the outputs together came to be, and all taps."""
        outputs, found = self._followed(dtype)
        whole = Way()
        for way in (*outputs, *found.values()):
            whole = whole.and_then(way)
        return whole

    def _followed(self, dtype: str) -> tuple[list[Way], dict[str, Way]]:
        below = NARROW[NARROW.index(dtype) + 1 :] if dtype in NARROW else NARROW
        own = {name: path for path, name in self.names.items()}
        only = None if self.only is None else {base(own.get(name, name)) for name in self.only}
        found: dict[str, Way] = {}
        given = [Way()] * len(self.program.jaxpr.invars)
        return _follow(self.program.jaxpr, given, Following(below, only, found)), found


def _inner(params: dict[str, Any]) -> tuple[Any, Any]:
    """(jaxpr, constants) of a call."""
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return (inner.jaxpr, inner.consts) if isinstance(inner, jex.ClosedJaxpr) else (inner, ())


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (jex.ClosedJaxpr, jex.Jaxpr)):
                yield item.jaxpr if isinstance(item, jex.ClosedJaxpr) else item


def _marks(params: dict[str, Any]) -> Iterator[str]:
    for program in _programs(params):
        for equation in program.eqns:
            if equation.primitive is _mark:
                yield equation.params["name"]
            else:
                yield from _marks(equation.params)


def _closed(program: Any) -> Iterator[tuple[str, str]]:
    for equation in program.eqns:
        name = equation.primitive.name
        if name in (*ENTERED, "scan"):
            for inner in _programs(equation.params):
                yield from _closed(inner)
        elif equation.primitive is not _mark:
            reason = f"it lies inside {name}"
            reason += ", whose own derivative would be lost" if name.startswith("custom_") else ""
            yield from ((found, reason) for found in _marks(equation.params))


@dataclass(frozen=True)
class Way:
    """How a value came to be since the taps before it."""

    narrow: str = ""
    """The narrowest dtype below that of the run, "" for none."""
    where: str = ""
    """The line of code where that was met first."""
    lines: frozenset[str] = frozenset()
    """Lines of code on the way, as `file:line (function)`."""

    def and_then(self, other: Way) -> Way:
        """Both ways together."""
        worse = NARROW.index(other.narrow) > NARROW.index(self.narrow) if self.narrow and other.narrow else False
        first = other if worse or not self.narrow else self
        return Way(first.narrow, first.where, self.lines | other.lines)


@dataclass(frozen=True)
class Following:
    """What `_follow` looks for, and what it found."""

    below: tuple[str, ...]
    only: Collection[str] | None
    found: dict[str, Way]


def base(name: str) -> str:
    """A tap's name without its numbers in a scan and among several calls."""
    return name.partition("[")[0].partition("@")[0]


def _follow(program: Any, given: list[Way], looking: Following) -> list[Way]:
    """Follow the values of a traced program; a tap's value begins anew. Loops: twice, for what comes round.

    What isn't floating carries no rounding on: a mask that was compared is the same in any dtype.
    """
    ways: dict[Any, Way] = dict(zip(program.invars, given, strict=True))

    def read(atom: Any) -> Way:
        return Way() if isinstance(atom, jex.Literal) else ways.get(atom, Way())

    for equation in program.eqns:
        way = Way()
        for atom in equation.invars:
            way = way.and_then(read(atom))
        name = equation.primitive.name
        if equation.primitive is _mark:
            key = equation.params["name"]
            counts = looking.only is None or base(key) in looking.only
            if counts:
                looking.found[key] = looking.found.get(key, Way()).and_then(way)
            ways[equation.outvars[0]] = Way() if counts else way
            continue
        inner = list(_programs(equation.params))
        if name in (*ENTERED, "scan") and len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
            made = _follow(inner[0], [read(atom) for atom in equation.invars], looking)
            if name == "scan":
                constants, carry = equation.params["num_consts"], equation.params["num_carry"]
                again = [read(atom) for atom in equation.invars]
                again[constants : constants + carry] = made[:carry]
                made = _follow(inner[0], again, looking)
            ways.update(zip(equation.outvars, made, strict=True))
            continue
        line = _line(equation)
        way = way.and_then(Way(lines=frozenset([line] if line else [])))
        for atom in (*equation.invars, *equation.outvars):
            dtype = str(getattr(atom.aval, "dtype", ""))
            if dtype in looking.below:
                way = way.and_then(Way(dtype, line))
        for body in inner:
            for one in _follow(body, [Way()] * len(body.invars), looking):
                way = way.and_then(one)
        for atom in equation.outvars:
            ways[atom] = way if jnp.issubdtype(atom.aval.dtype, jnp.floating) else Way(lines=way.lines)
    return [read(atom) for atom in program.outvars]


def _line(equation: Any) -> str:
    """`file:line (function)` of the user's code that made an equation; "" where JAX doesn't know it."""
    try:
        from jax._src.source_info_util import user_frame

        frame = user_frame(equation.source_info.traceback)
    except (ImportError, AttributeError, TypeError):  # a private part of JAX, of another version
        return ""
    return f"{frame.file_name}:{frame.start_line} ({frame.function_name})" if frame else ""

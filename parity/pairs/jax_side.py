"""JAX's side of a pair: linen, NNX, Flax models of transformers, callable pytrees (equinox), functions of parameters.

Each becomes a `JaxModel`: its leaves by dotted path, and a call with leaves and named inputs. Taps come by module path:
through `flax.linen.intercept_methods`, or, for every class that is called as a module, through its `__call__`.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coretrain.base.errors import UserError
from coretrain.contract.taps import tap
from parity.pairs.outputs import replaced_first

Leaves = Mapping[str, Any]


@dataclass(frozen=True)
class JaxModel:
    """Any JAX model. `leaves` are its floating arrays (or their shapes) by path; `call(leaves, inputs, dtype)`."""

    leaves: dict[str, Any]
    call: Callable[[Leaves, Mapping[str, Any], str], Any]
    tapped: Callable[[Collection[str]], contextlib.AbstractContextManager[None]]
    """Within, the outputs of the modules at these paths are tapped under their paths."""
    kind: str = "function"


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX or numpy, of floating numbers."""
    return isinstance(value, (jax.Array, np.ndarray)) and jnp.issubdtype(value.dtype, jnp.floating)


def dotted(path: tuple[Any, ...]) -> str:
    """A pytree's path as `a.b.0.c`."""
    return ".".join(str(_key(part)) for part in path)


def _key(part: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(part, name):
            return getattr(part, name)
    return part


def model_of(given: Any, tree: Any = None, inputs: Mapping[str, Any] | None = None) -> JaxModel:
    """The model that an object is; `tree`: the parameters of a function; `inputs`: what a linen module is shaped with.

    Raises `UserError` where it is none of the known kinds.
    """
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(given, linen.Module):
        return _linen(given, tree, inputs or {})
    if nnx is not None and isinstance(given, nnx.Module):
        return _nnx(given)
    if hasattr(given, "params") and hasattr(given, "module") and callable(given):
        return _transformers(given)
    if callable(given) and tree is not None:
        return _function(given, tree)
    if callable(given) and not inspect.isroutine(given) and len(jax.tree.leaves(given)) > 0:
        leaves = jax.tree.leaves(given)
        if leaves != [given]:
            return _function(lambda model, **named: model(**named), given, "pytree")
    if callable(given):
        return _function(given, None)
    raise UserError(
        "parity/jax-model-unknown",
        f"--jax gives {type(given).__name__}, which can't be called: give a module of linen, NNX or equinox, or a "
        "function of (parameters, named inputs)",
    )


def _flatten(tree: Any) -> tuple[dict[str, Any], Callable[[Leaves], Any]]:
    """The floating leaves of a pytree by path, and what puts others in their place."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [dotted(path) for path, _ in pairs]

    def floating(leaf: Any) -> bool:
        return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)

    leaves = {name: leaf for name, (_, leaf) in zip(names, pairs, strict=True) if floating(leaf)}

    def put(given: Leaves) -> Any:
        return jax.tree.unflatten(
            structure, [given.get(name, leaf) for name, (_, leaf) in zip(names, pairs, strict=True)]
        )

    return leaves, put


def _nested(leaves: Leaves) -> dict[str, Any]:
    """Dictionaries in dictionaries, out of dotted paths: the tree of a function that shows none."""
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *folders, last = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree


def _function(function: Callable[..., Any], tree: Any, kind: str = "function") -> JaxModel:
    if tree is None:
        return JaxModel({}, lambda given, inputs, dtype: function(*([_nested(given)] * bool(given)), **inputs), _calls)
    leaves, put = _flatten(tree)

    def call(given: Leaves, named: Mapping[str, Any], dtype: str) -> Any:
        whole = put(given)
        _roots.append(whole)
        try:
            return function(whole, **named)
        finally:
            _roots.pop()

    return JaxModel(leaves, call, _calls, kind)


def _with_dtype(module: Any, dtype: str) -> Any:
    """A linen module that computes in `dtype`, where it has a floating dtype of its own."""
    own = getattr(module, "dtype", None)
    return module.clone(dtype=jnp.dtype(dtype)) if own is not None and jnp.issubdtype(own, jnp.floating) else module


def _linen(module: Any, tree: Any, inputs: Mapping[str, Any]) -> JaxModel:
    if tree is None:
        given = {name: jnp.asarray(v) if isinstance(v, np.ndarray) else v for name, v in inputs.items()}
        arrays = {name: v for name, v in given.items() if isinstance(v, jax.Array)}
        rest = {name: v for name, v in given.items() if name not in arrays}
        tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), **x, **rest), arrays)
    variables = tree if "params" in tree else {"params": tree}
    leaves, put = _flatten(variables)
    short = {name.removeprefix("params."): name for name in leaves}

    def call(given: Leaves, named: Mapping[str, Any], dtype: str) -> Any:
        return _with_dtype(module, dtype).apply(put({short[name]: leaf for name, leaf in given.items()}), **named)

    return JaxModel({name: leaves[long] for name, long in short.items()}, call, _intercepted, "linen")


def _transformers(model: Any) -> JaxModel:
    leaves, put = _flatten(model.params)

    def call(given: Leaves, named: Mapping[str, Any], dtype: str) -> Any:
        before = model._module
        model._module = _with_dtype(before, dtype)
        try:
            return model(params=put(given), **named)
        finally:
            model._module = before

    return JaxModel(leaves, call, _intercepted, "transformers")


def _nnx(model: Any) -> JaxModel:
    from flax import nnx

    graph, state = nnx.split(model)
    leaves, put = _flatten(nnx.to_pure_dict(state))

    def call(given: Leaves, named: Mapping[str, Any], dtype: str) -> Any:
        fresh = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(fresh, put(given))
        return nnx.merge(graph, fresh)(**named)

    return JaxModel(leaves, call, _calls, "nnx")


@contextlib.contextmanager
def _intercepted(wanted: Collection[str]) -> Iterator[None]:
    from flax import linen

    def intercept(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = following(*args, **kwargs)
        path = ".".join(context.module.path)
        if context.method_name != "__call__" or path not in wanted:
            return output
        return replaced_first(output, lambda value: tap(f"{path}@", value), is_array)

    with linen.intercept_methods(intercept), _calls(wanted, own=False):
        yield


def _classes() -> Iterator[type]:
    """Classes whose instances are called as modules: of NNX and equinox, as far as they were imported."""
    roots = []
    for package, name in (("flax.nnx", "Module"), ("equinox", "Module")):
        if package in sys.modules:
            roots.append(getattr(sys.modules[package], name))
    seen, left = set(), roots
    while left:
        kind = left.pop()
        if kind not in seen:
            seen.add(kind)
            left += kind.__subclasses__()
            # equinox's own wrappers, as of a bound method, are modules too
            if "__call__" in vars(kind) and kind not in roots and not kind.__module__.startswith("equinox._"):
                yield kind


@contextlib.contextmanager
def _calls(wanted: Collection[str], own: bool = True) -> Iterator[None]:
    """Taps by path for classes that are called as modules.

    A module's path is that of the one that calls it and the attribute where it lies. Where transformations hand on
    a copy that lies nowhere (a scan over stacked layers), its class stands for the attribute.
    """
    stack: list[tuple[Any, str]] = []
    patched: list[tuple[type, Any]] = []

    def wrap(original: Any, kind: type) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if stack and stack[-1][0] is self:  # the class above's own call
                return original.__get__(self, type(self))(*args, **kwargs)
            path = _path(self, stack)
            stack.append((self, path))
            try:
                output = original.__get__(self, type(self))(*args, **kwargs)
            finally:
                stack.pop()
            if path not in wanted:
                return output
            return replaced_first(output, lambda value: tap(f"{path}@", value), is_array)

        return __call__

    try:
        for kind in _classes() if own else ():
            patched.append((kind, vars(kind)["__call__"]))
            setattr(kind, "__call__", wrap(patched[-1][1], kind))  # noqa: B010  # mypy forbids =
        yield
    finally:
        for kind, original in patched:
            setattr(kind, "__call__", original)  # noqa: B010  # mypy forbids =


_roots: list[Any] = []
"""Trees that functions of parameters are called with."""


def _path(module: Any, stack: list[tuple[Any, str]]) -> str:
    for caller, path in reversed(stack):
        found = _place(caller, module, 0)
        if found is not None:
            return f"{path}.{found}" if path else found
    for root in _roots:  # called by a function that holds the tree
        found = _place(root, module, 0)
        if found is not None:
            return found
    if not stack:
        return ""
    return f"{stack[-1][1]}.{type(module).__name__}".removeprefix(".")


def _place(holder: Any, module: Any, depth: int) -> str | None:
    """Where inside `holder` an object lies, as a dotted path."""
    if depth > 6:
        return None
    if isinstance(holder, Mapping):
        items = list(holder.items())
    elif isinstance(holder, (list, tuple)) or type(holder).__name__ == "List":
        items = list(enumerate(holder))
    else:
        items = list(getattr(holder, "__dict__", {}).items())
    items = [(key, value) for key, value in items if not str(key).startswith("_pytree")]
    for key, value in items:
        if value is module:
            return str(key)
    for key, value in items:
        if isinstance(value, (Mapping, list, tuple)) or hasattr(value, "__dict__"):
            if isinstance(value, (type, jax.Array, np.ndarray)) or inspect.isroutine(value):
                continue
            deeper = _place(value, module, depth + 1)
            if deeper is not None:
                return f"{key}.{deeper}"
    return None

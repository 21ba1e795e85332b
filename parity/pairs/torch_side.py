"""Torch's side of a pair: any module or function, its taps by module path, its values replaced by given ones."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from coretrain.base.errors import UserError
from coretrain.contract import taps
from coretrain.contract.taps import tap, tapped
from parity.localize.recorders import LOSS, Names, Record, numpy_of, parents_of
from parity.pairs.outputs import replaced_first
from parity.pairs.through import NARROW, Way, numbered

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
APART = (os.path.dirname(os.path.abspath(torch.__file__)), OURS, os.path.dirname(os.path.abspath(taps.__file__)))
"""Folders whose code isn't the model's."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, where torch.compile or DistributedDataParallel wrapped it."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def clean(path: str) -> str:
    """A path without what torch.compile of a submodule puts into it."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def tensors_of(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Floating parameters and buffers of the state dict by name, each once; and the other names of those with several.

    A tied head is one tensor with two names: the second is in the second dictionary, with the first beside it.
    """
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    kept = {clean(name) for name in module.state_dict()}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        name = clean(name)
        if name not in kept or not tensor.is_floating_point():
            continue
        if id(tensor) in first and first[id(tensor)] != name:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    return tensors, aliases


def call(
    module: nn.Module, dtype: str, weights: Mapping[str, Tensor], arguments: Mapping[str, Any], taps: Sequence[str]
) -> Any:
    """The module's output with these weights (by the names of `tensors_of`), and its submodules `taps` tapped.

    Buffers that aren't among the weights come in `dtype`. Compiled code is run as it is written.
    """
    own = {clean(name): name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    given = {own[name]: value for name, value in weights.items() if name in own}
    for name, buffer in module.named_buffers():
        if name not in given:
            given[name] = buffer.to(DTYPES[dtype]) if buffer.is_floating_point() else buffer.clone()
    modules = {clean(name): inner for name, inner in module.named_modules()}
    missing = [name for name in taps if name not in modules]
    if missing:
        raise UserError(
            "parity/torch-module-not-found",
            f"the torch model has no module {missing[0]}: correct it in the map's [taps], or leave it out",
        )
    with _hooked({name: modules[name] for name in taps}), _as_written(module):
        return torch.func.functional_call(module, given, (), dict(arguments))


@contextlib.contextmanager
def _hooked(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    met: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., Any]:
        return lambda module, given, output: replaced_first(
            output, lambda value: tap(numbered(f"{name}@", met), value), lambda value: isinstance(value, Tensor)
        )

    handles = [unwrapped(module).register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _as_written(module: nn.Module) -> Iterator[None]:
    """Within, code that torch.compile wrapped runs eagerly: what is compiled calls no hook that came later."""
    compiled = any(
        hasattr(inner, "_orig_mod") or getattr(inner, "_compiled_call_impl", None) for inner in module.modules()
    )
    if not compiled:
        yield
        return
    from torch.compiler import set_stance

    with set_stance("force_eager"):
        yield


class _Seat(torch.autograd.Function):
    """`seat` where `keep`, else the value; what goes back to the value there is `cotangent`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, seat: Tensor, cotangent: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(cotangent, keep)
        return torch.where(keep, seat, value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cotangent, keep = ctx.saved_tensors
        return torch.where(keep, cotangent, upstream), None, None, None


class Watch(TorchDispatchMode):
    """Notes how each value came to be since the last tap: dtypes below `wide`, and lines of code."""

    def __init__(self, wide: str) -> None:
        super().__init__()
        at = NARROW.index(wide) + 1 if wide in NARROW else 0
        self.below = {getattr(torch, name): name for name in NARROW[at:] if hasattr(torch, name)}
        self.seen: dict[int, Way] = {}
        self.held: list[Any] = []  # storages, so that no address is used twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would import its compiler, which takes seconds; nothing is compiled in here

    def way(self, tensor: Tensor) -> Way:
        """How one tensor came to be; views of one storage are one."""
        return self.seen.get(tensor.untyped_storage()._cdata, Way())

    def clear(self, tensor: Tensor) -> None:
        """At a tap: what follows begins anew."""
        self.seen.pop(tensor.untyped_storage()._cdata, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [item for item in flat((args, kwargs)) if isinstance(item, Tensor)]
        made = [item for item in flat(output) if isinstance(item, Tensor)]
        line = line_of_caller()
        way = Way(lines=frozenset([line] if line else []))
        for item in tensors:
            way = self.way(item).and_then(way)
        for item in (*tensors, *made):
            if item.dtype in self.below:
                way = way.and_then(Way(self.below[item.dtype], line))
        for item in made:
            storage = item.untyped_storage()
            self.held.append(storage)
            # what isn't floating carries no rounding on: a mask that was compared is the same in any dtype
            self.seen[storage._cdata] = way if item.is_floating_point() else Way(lines=way.lines)
        return output


def flat(value: Any) -> Iterator[Any]:
    """Everything inside tuples, lists and dictionaries."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)
    elif isinstance(value, dict):
        yield from flat(list(value.values()))
    else:
        yield value


def line_of_caller() -> str:
    """`file:line (function)` of the nearest caller that is not torch's code, "" where that is ours."""
    for frame, line in traceback.walk_stack(None):
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        if name.startswith(OURS) and function not in ("__torch_dispatch__", "line_of_caller"):
            break  # ours: a cast of a weight, a tap
        if not name.startswith(APART) and "contextlib" not in name and "deprecation" not in name:
            return f"{name}:{line} ({function})"
    return ""


def record(
    loss: Callable[[], Tensor],
    seats: Record | None = None,
    keep: Callable[[str, tuple[int, ...]], np.ndarray | None] = lambda name, shape: None,
    watch: Watch | None = None,
    only: Collection[str] | None = None,
) -> tuple[Record, dict[str, Way]]:
    """Run `loss`, which makes a scalar and taps on its way, and its backward pass; gradients lie in `.grad`.

    With `seats`, each tap goes on with the value and the cotangent there, at the elements that `keep` names (None: all
    of them) and that are numbers. The second part: per tap, what `watch` saw of how it came to be. `only`: the taps
    that count.
    """
    made, names = Record(), Names()
    ways: dict[str, Way] = {}
    nodes: dict[str, Any] = {}

    def see(name: str, value: Tensor) -> Tensor:
        name = names(name)
        if only is not None and name not in only:
            return value
        if watch is not None:
            ways[name] = watch.way(value)
            watch.clear(value)
        made.values[name] = numpy_of(value)
        made.dtypes[name] = str(value.dtype).removeprefix("torch.")
        if not value.requires_grad:
            return value
        seat = None if seats is None else seats.values.get(name)
        cotangent = None if seats is None else seats.cotangents.get(name)
        if seat is None or cotangent is None or seat.shape != value.shape or cotangent.shape != value.shape:
            value = value.view_as(value)  # a node of its own, also where two taps see one tensor
        else:
            there = keep(name, seat.shape)
            here = np.isfinite(cotangent) & ~np.isnan(seat)
            here = here if there is None else here & there
            parts = [torch.from_numpy(np.array(array)).to(value.dtype) for array in (seat, cotangent)]
            value = _Seat.apply(value, *parts, torch.from_numpy(np.array(here)))
            if watch is not None:
                watch.clear(value)
        nodes[name] = value.grad_fn

        def note(upstream: Tensor) -> None:
            made.cotangents[name] = numpy_of(upstream)

        value.register_hook(note)
        return value

    with tapped(see):
        with watch or contextlib.nullcontext():
            result = see(LOSS, loss())
        result.backward()
    made.parents = parents_of(nodes)
    return made, ways

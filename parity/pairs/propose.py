"""A proposal of a map: by a pair's own converter, or by shapes, names and values. A person confirms it."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from coretrain.base.errors import UserError
from parity.pairs import torch_side
from parity.pairs.infer import Converter, by_converter
from parity.pairs.jax_side import JaxModel
from parity.pairs.mapping import Entry, Map

SAME = {
    "weight": "", "kernel": "", "scale": "", "embedding": "", "gamma": "", "w": "", "b": "bias", "beta": "bias",
    "running_mean": "mean", "running_var": "var", "layer": "layers", "h": "layers", "blocks": "layers",
    "block": "layers", "params": "", "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out",
    "out_proj": "out", "ln": "norm", "layernorm": "norm", "layer_norm": "norm", "batch_stats": "",
}  # fmt: skip
"""Words of names that stand for the same thing, or for nothing."""
SURE = 0.5
"""A pair of names less alike than this is not proposed."""


def proposed(module: nn.Module, model: JaxModel, convert: Converter | None = None) -> Map:
    """A map for the two. With `convert`, which takes torch's state dict and gives JAX's tree, it is read off it."""
    module = torch_side.unwrapped(module)
    tensors, aliases = torch_side.tensors_of(module)
    if not model.leaves:
        raise UserError(
            "parity/jax-tree-unknown",
            "the JAX function shows no tree of its parameters: name one with --params pkg.mod:tree",
        )
    if convert is not None:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        full = shapes | {name: shapes[first] for name, first in aliases.items()}
        parameters, unused = by_converter(convert, full, model.leaves)
        parameters = {leaf: _renamed(leaf, entry, aliases) for leaf, entry in parameters.items()}
        unused = {name: why for name, why in unused.items() if name not in aliases}
        taken = {aliases.get(name, name) for entry in parameters.values() for name in entry.torch}
        unused = {name: why for name, why in unused.items() if name not in taken}
        confirmed = True
    else:
        parameters = _matched(module, tensors, model.leaves)
        taken = {name for entry in parameters.values() for name in entry.torch}
        unused = {name: "no leaf of JAX is like it" for name in tensors if name not in taken}
        confirmed = False
    left = {name: "no tensor of torch is like it" for name in model.leaves if name not in parameters}
    return Map(parameters, unused, left, taps_of(module, parameters), confirmed=confirmed and not left)


def _renamed(leaf: str, entry: Entry, aliases: Mapping[str, str]) -> Entry:
    """An entry whose tied tensors go by those of their names that are most like the leaf's."""

    def best(name: str) -> str:
        first = aliases.get(name, name)
        names = [first, *(other for other, its in aliases.items() if its == first)]
        return max(names, key=lambda one: _alike(one, leaf))

    return replace(entry, torch=tuple(map(best, entry.torch)))


def taps_of(module: nn.Module, parameters: Mapping[str, Entry]) -> dict[str, Entry]:
    """Pairs of modules whose parameters belong together, and of what holds them; those alone that are one to one."""
    modules = [torch_side.clean(name) for name, _ in module.named_modules()]
    found: dict[tuple[str, str], None] = {}
    used = Counter(name for entry in parameters.values() for name in entry.torch)
    for leaf, entry in parameters.items():
        if any(used[name] > 1 for name in entry.torch):
            continue  # a part of it: the modules aren't the same
        names = [name.rpartition(".")[0] for name in entry.torch]
        if len(names) > 1 and not entry.join.startswith("stack"):
            continue
        for at, name in enumerate(names):
            path = leaf.rpartition(".")[0]
            while name and path and name in modules:
                found[(f"{path}[{at}]" if len(names) > 1 else path, name)] = None
                here, there = name.rpartition("."), path.rpartition(".")
                alike = _number(here[2]) == _number(there[2])
                name, path = (here[0], there[0]) if alike else ("", "")
    left: dict[str, set[str]] = {}
    right: dict[str, set[str]] = {}
    for path, name in found:
        left.setdefault(path, set()).add(name)
        right.setdefault(name, set()).add(path)
    pairs = {name: path for path, name in found if len(left[path]) == 1 and len(right[name]) == 1}
    return {pairs[name]: Entry((name,)) for name in modules if name in pairs}


def _number(word: str) -> str:
    return word if word.isdecimal() else ""


def _matched(module: nn.Module, tensors: Mapping[str, Tensor], leaves: Mapping[str, Any]) -> dict[str, Entry]:
    """Leaves and tensors put together so that the names are most alike and the shapes allow it."""
    from scipy.optimize import linear_sum_assignment  # which JAX needs too

    candidates: dict[tuple[str, str], tuple[float, Entry]] = {}
    groups = _stacks(tensors)
    offers = [*((name, (name,)) for name in tensors), *groups.items()]
    for leaf, like in leaves.items():
        for label, names in offers:
            found = _offer(module, tensors, names, leaf, like)
            if found is not None:
                score = _alike(label, leaf) + found[0]
                candidates[(leaf, label)] = score, found[1]
    labels, keys = [label for label, _ in offers], list(leaves)
    if not candidates:
        return {}
    costs = np.full((len(keys), len(labels)), 10.0)
    for (leaf, label), (score, _) in candidates.items():
        costs[keys.index(leaf), labels.index(label)] = -score
    entries = {}
    taken: set[str] = set()
    for row, column in sorted(zip(*linear_sum_assignment(costs), strict=True), key=lambda at: costs[at]):
        found = candidates.get((keys[row], labels[column]))
        if found is not None and found[0] >= SURE and not taken & set(found[1].torch):
            entries[keys[row]] = found[1]
            taken |= set(found[1].torch)
    entries |= _split(tensors, leaves, entries, taken)
    return {leaf: entries[leaf] for leaf in leaves if leaf in entries}


def _stacks(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Tensors of like layers by the name with * for the number."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in tensors:
        for match in re.finditer(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", name):
            groups.setdefault(f"{name[: match.start()]}*{name[match.end() :]}", []).append((int(match.group()), name))
    return {label: tuple(name for _, name in sorted(found)) for label, found in groups.items() if len(found) > 1}


def _offer(
    module: nn.Module, tensors: Mapping[str, Tensor], names: Sequence[str], leaf: str, like: Any
) -> tuple[float, Entry] | None:
    """(how sure, the entry) where tensors can become a leaf by shape; values that are equal settle it."""
    shapes = {tuple(tensors[name].shape) for name in names}
    wanted = tuple(like.shape)
    if len(shapes) != 1 or (len(names) > 1 and (not wanted or wanted[0] != len(names))):
        return None
    own = wanted[1:] if len(names) > 1 else wanted
    for preferred, steps, note in _ways(module, names[0], next(iter(shapes)), own, leaf):
        entry = Entry(tuple(names), (tuple(steps),), "stack 0" if len(names) > 1 else "", (), note)
        return preferred + _by_values(tensors, entry, like), entry
    return None


def _ways(
    module: nn.Module, name: str, shape: tuple[int, ...], wanted: tuple[int, ...], leaf: str
) -> Iterator[tuple[float, list[str], str]]:
    """Steps from a shape to another, the likeliest first."""
    owner = _owner(module, name)
    matrix = len(shape) == 2 and name.endswith("weight") and isinstance(owner, nn.Linear) and shape[::-1] == wanted
    if matrix and (leaf.rpartition(".")[2] != "weight" or shape != wanted):
        square = shape[0] == shape[1]
        yield 0.2, ["transpose"], "square: that it is transposed is a guess, by the names" if square else ""
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) and len(shape) > 2:
        space = range(2, len(shape))
        order = [*space, 0, 1]
        if tuple(shape[k] for k in order) == wanted:
            axes = " ".join(str(k - 2) for k in space)
            yield 0.2, [f"transpose {' '.join(map(str, order))}", f"flip {axes}"], "a transposed convolution: flipped"
    elif len(shape) > 2 and name.endswith("weight"):
        order = [*range(2, len(shape)), 1, 0]
        if tuple(shape[k] for k in order) == wanted:
            yield 0.2, [f"transpose {' '.join(map(str, order))}"], ""
    if shape == wanted:
        yield 0.2, [], ""
    if math.prod(shape) == math.prod(wanted) and len(shape) == 2 and len(wanted) == 3:
        if wanted[0] == shape[1]:  # [D, heads, head]
            yield 0.1, ["transpose", f"reshape {' '.join(map(str, wanted))}"], "split into heads"
        elif wanted[2] == shape[0]:  # [heads, head, D]
            yield 0.1, ["transpose", f"reshape {' '.join(map(str, wanted))}"], "heads joined"
    if math.prod(shape) == math.prod(wanted) and len(shape) == 1:
        yield 0.1, [f"reshape {' '.join(map(str, wanted))}"], ""
    for turned in itertools.permutations(range(len(shape))) if len(shape) < 6 else ():
        if tuple(shape[k] for k in turned) == wanted:
            yield 0.0, [f"transpose {' '.join(map(str, turned))}"], "a guess by the shape"


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return torch_side.unwrapped(module.get_submodule(name.rpartition(".")[0]))
    except AttributeError:
        return None


def _by_values(tensors: Mapping[str, Tensor], entry: Entry, like: Any) -> float:
    """1 where both hold the same numbers, as of one checkpoint; a little for like means and deviations."""
    if not hasattr(like, "__array__"):
        return 0.0
    other = np.asarray(like, np.float64)
    own = entry.made({name: tensors[name].detach().double() for name in entry.torch}, "").numpy()
    if np.allclose(own, other, 1e-5, 1e-7):
        return 1.0 if own.std() > 0 else 0.1
    if np.allclose([own.mean(), own.std()], [other.mean(), other.std()], 0.2, 1e-3):
        return 0.05
    return 0.0


def _words(name: str) -> list[str]:
    words: list[str] = []
    for part in re.split(r"[._]", re.sub(r"\[(\d+)\]", r".\1", name)):
        found = re.fullmatch(r"([A-Za-z]+)(\d*)", part)
        words += [w for w in (found.groups() if found else (part,)) if w]
    text = ".".join(words).lower()
    for long, short in SAME.items():
        text = re.sub(rf"(?<![a-z]){long.replace('_', '.')}(?![a-z])", short, text)
    return [word for word in text.split(".") if word]


def _alike(name: str, leaf: str) -> float:
    """How alike two names are, 0 to 1: their words in order; numbers must not differ where both have as many."""
    ours, theirs = _words(name), _words(leaf)
    numbers = [[word for word in words if word.isdecimal()] for words in (ours, theirs)]
    if len(numbers[0]) == len(numbers[1]) and numbers[0] != numbers[1]:
        return 0.0
    kinds = [words[-1:] == ["bias"] for words in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return 0.0
    return (
        difflib.SequenceMatcher(None, ours, theirs).ratio() * 0.7
        + 0.3 * difflib.SequenceMatcher(None, " ".join(ours), " ".join(theirs)).ratio()
    )


def _split(
    tensors: Mapping[str, Tensor], leaves: Mapping[str, Any], entries: Mapping[str, Entry], taken: set[str]
) -> dict[str, Entry]:
    """Query, key and value of a fused matrix, which torch's own attention has ([3 D, D], `in_proj`)."""
    made: dict[str, Entry] = {}
    offers = [*((name,) for name in tensors), *_stacks(tensors).values()]
    for names in offers:
        shape = tuple(tensors[names[0]].shape)
        if taken & set(names) or not re.search(r"in_proj_|qkv", names[0]) or not shape or shape[0] % 3:
            continue
        kind = "bias" if len(shape) == 1 else "kernel"
        for at, word in enumerate(("query", "key", "value")):
            for leaf, like in leaves.items():
                if leaf in entries or leaf in made or word not in leaf or not leaf.endswith(kind):
                    continue
                wanted = tuple(like.shape)
                if len(names) > 1 and (not wanted or wanted[0] != len(names)):
                    continue
                wanted = wanted[1:] if len(names) > 1 else wanted
                numbers = [[word for word in _words(text) if word.isdecimal()] for text in (names[0], leaf)]
                if math.prod(wanted) != math.prod(shape) // 3 or (len(names) == 1 and numbers[0] != numbers[1]):
                    continue
                steps = [f"split 0 3 {at}", *(["transpose"] if len(shape) == 2 else [])]
                steps.append(f"reshape {' '.join(map(str, wanted))}")
                join = "stack 0" if len(names) > 1 else ""
                made[leaf] = Entry(names, (tuple(steps),), join, (), "a third of a fused matrix: a guess by the names")
                break
    return made

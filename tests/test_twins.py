"""The twins show the same public names, in the same order, with the same arguments; the stacks never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted({path.name for stack in ("torchtrain", "jaxtrain") for path in (ROOT / stack).glob("*.py")})
DIFFERENT_ARGUMENTS = {
    # torch's objects hold their state, JAX gets it passed in: each file says so at the place
    ("checkpoint.py", "load_native"),
}


def public(stack: str, name: str) -> list[tuple[str, tuple[str, ...]]]:
    tree = ast.parse((ROOT / stack / name).read_text())
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            arguments = tuple(arg.arg for arg in node.args.args) if isinstance(node, ast.FunctionDef) else ()
            found.append((node.name, () if (name, node.name) in DIFFERENT_ARGUMENTS else arguments))
    return found


ONE_SIDED = {
    # JAX: a place for optax' state and the two rules of its chain; the kernel that torch calls inside SDPA; tree paths
    "optimizer.py": {"Moments", "scale_by_adam", "scale_by_muon"},
    "attention.py": {"splash_attention"},
    "model.py": {"dotted"},
}


@pytest.mark.parametrize("name", FILES)
def test_twins_show_the_same_names_in_the_same_order(name):
    torch, jax = ([entry for entry in public(stack, name) if entry[0] not in ONE_SIDED.get(name, ())]
                  for stack in ("torchtrain", "jaxtrain"))  # fmt: skip
    assert torch == jax


@pytest.mark.parametrize("stack", ["torchtrain", "jaxtrain"])
def test_the_stacks_never_import_each_other(stack):
    foreign = {"torchtrain": {"jaxtrain", "jax", "flax", "optax"}, "jaxtrain": {"torchtrain", "torch"}}[stack]
    for path in (ROOT / stack).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & foreign, path

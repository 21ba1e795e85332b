"""The twins show the same public names, in the same order, with the same arguments; the stacks never meet."""

from __future__ import annotations

import ast

import pytest

from tests.support.commands import ROOT

STACKS = ("torchtrain", "jaxtrain")
WITHOUT_A_TWIN = {
    # JAX: one program for many devices, which the compiler divides by rules; stacked and transposed arrays
    "jaxtrain/parallel/sharding.py",
    "jaxtrain/parallel/pipeline.py",
    "jaxtrain/aot/step.py",
    "jaxtrain/parallel/arrays.py",
    # a TPU's compiler without a TPU
    "jaxtrain/aot/tpu.py",
    # torch: DeepSpeed around the update, which in JAX is a matter of sharded arrays; stages as processes
    "torchtrain/parallel/zero.py",
    "torchtrain/parallel/pipeline.py",
    # torch: XLA's products are shared by its threads, also of few rows
    "torchtrain/few_row_linear.py",
    # torch: the exporter to ONNX is PyTorch's own
    "torchtrain/onnx_export.py",
}
FILES = sorted(
    {
        str(path.relative_to(ROOT / stack))
        for stack in STACKS
        for path in (ROOT / stack).rglob("*.py")
        if str(path.relative_to(ROOT)) not in WITHOUT_A_TWIN
    }
)
ONE_SIDED = {
    # JAX: a place for optax' state and the two rules of its chain; the kernel that torch calls inside SDPA; tree paths
    # torch: AdamW made once for both of its users, and what each process writes of a state
    "optimizer.py": {
        "Moments",
        "scale_by_adam",
        "scale_by_muon",
        "adamw",
        "fragment",
        "moment",
        "replicated",
        "replicated_names",
    },
    "attention.py": {"splash_attention"},
    "generate.py": {"cache_slots"},
    # torch: each process's part of a tensor, which in JAX the sharding of the arrays knows; what is exported of a state
    # stands with JAX's arrays, in tensors.py
    "model.py": {"dotted", "abstract_model", "look_up", "fill", "hold", "part_of", "block", "exported"},
    # JAX: one process may hold many devices; its coordination service carries what processes tell each other
    # torch: process groups and the sums over them that the compiler puts in for JAX
    "parallel.py": {
        "Devices",
        "choose_devices",
        "Axis",
        "ALONE",
        "Place",
        "enter",
        "leave",
        "place_of",
    },
    # JAX: what trains and what doesn't are two trees, which torch's model holds together
    "lora.py": {"thaw"},
    # How long a compilation pays: torch chooses whether to compile, JAX whether to keep what it compiled
    # JAX: what is compiled of a run is also asked for by `twintrain plan`, before there is any array
    "trainer.py": {"COMPILE_PAYS_AFTER", "COMPILE_CACHE_AFTER", "Programs", "programs", "choose_layers"},
}
DIFFERENT_ARGUMENTS = {
    # torch's objects hold their state, JAX gets it passed in: each file says so at the place
    ("checkpoint.py", "load_native"),
    # JAX cuts shards inside, torch is handed them; and activations gathered for a layer are a matter of its policy
    ("attention.py", "attention"),
    ("model.py", "checkpointed"),
    # torch's processes say which one they are, and which axis their parts are summed over
    ("checkpoint.py", "save_native"),
    ("loss.py", "cross_entropy"),
    ("model.py", "build_model"),
    # torch fills a model's bytes in place, JAX makes arrays for its tree
    ("quantized.py", "take_over"),
}
DIFFERENT_METHODS = {
    # nn.Module's forward is nnx.Module's __call__, and nnx layers are made stacked and of a dtype; optimizer: as above
    "model.py",
    "lora.py",
    "quantized.py",
    "optimizer.py",
}


def arguments(node: ast.FunctionDef) -> str:
    """Names, kinds and defaults of the arguments, without their types."""
    a = node.args
    for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
        arg.annotation = None
    return ast.unparse(a)


def public(stack: str, name: str) -> list[tuple[str, str]]:
    """Public constants, functions, classes and methods of a module, in order."""
    found: list[tuple[str, str]] = []
    for node in ast.parse((ROOT / stack / name).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [(target.id, "constant") for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            free = (name, node.name) in DIFFERENT_ARGUMENTS
            found.append((node.name, "any arguments" if free else arguments(node)))
        elif isinstance(node, ast.ClassDef):
            found.append((node.name, "class"))
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
            if name not in DIFFERENT_METHODS and not node.name.startswith("_"):
                shown = [m for m in methods if not m.name.startswith("_") or m.name == "__init__"]
                found += [(f"{node.name}.{m.name}", arguments(m)) for m in shown]
    return [entry for entry in found if not entry[0].startswith("_")]


@pytest.mark.parametrize("name", FILES)
def test_twins_show_the_same_names_in_the_same_order(name):
    torch, jax = (
        [entry for entry in public(stack, name) if entry[0].split(".")[0] not in ONE_SIDED.get(name, ())]
        for stack in STACKS
    )
    assert torch == jax


@pytest.mark.parametrize("name", ONE_SIDED)
def test_no_exception_outlives_its_reason(name):
    torch, jax = ({entry[0].split(".")[0] for entry in public(stack, name)} for stack in STACKS)
    assert torch ^ jax == ONE_SIDED[name]


@pytest.mark.parametrize("name", sorted(WITHOUT_A_TWIN))
def test_a_file_without_a_twin_says_so(name):
    path = ROOT / name
    assert "no twin" in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def test_every_twin_is_documented():
    for stack in STACKS:
        for name in FILES:
            tree = ast.parse((ROOT / stack / name).read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), (stack, name)
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), (stack, name, node.name)


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports, wherever in it, importlib.import_module by a literal name included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name.split(".")[0] for name in names}


FOREIGN = {
    "torchtrain": {"jaxtrain", "parity", "jax", "jaxlib", "flax", "optax", "orbax", "grain"},
    "jaxtrain": {"torchtrain", "parity", "torch", "deepspeed", "flash_attn"},
    "coretrain": {"torchtrain", "jaxtrain", "parity", "torch", "jax", "flax", "optax", "orbax", "grain"},
}


@pytest.mark.parametrize("package", FOREIGN)
def test_the_stacks_never_import_each_other(package):
    paths = list((ROOT / package).rglob("*.py"))
    assert len(paths) > 5
    for path in paths:
        assert not imported(ast.parse(path.read_text(encoding="utf-8"))) & FOREIGN[package], path

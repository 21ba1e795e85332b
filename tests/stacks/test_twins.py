"""The twins show the same public names, in the same order, with the same arguments; the stacks never meet."""

from __future__ import annotations

import ast

import pytest

from tests.support.commands import ROOT

STACKS = ("torchtrain", "jaxtrain")
WITHOUT_A_TWIN = {
    # JAX: one program for many devices, which the compiler divides by rules; stacked and transposed arrays
    "jaxtrain/parallel/sharding.py",
    "jaxtrain/parallel/step.py",
    "jaxtrain/parallel/pipeline.py",
    "jaxtrain/arrays.py",
    # JAX: rules for gradients that torch's are summed by anyhow
    "jaxtrain/wide.py",
    # JAX: what is compiled is known before there is any array, for a TPU's compiler too, which needs no TPU
    "jaxtrain/programs.py",
    "jaxtrain/aot/__init__.py",
    "jaxtrain/aot/step.py",
    "jaxtrain/aot/tpu.py",
    # torch: processes that sum over axes; DeepSpeed or FSDP2 around the update; stages as processes. In JAX all are
    # shardings
    "torchtrain/parallel/axes.py",
    "torchtrain/parallel/zero.py",
    "torchtrain/parallel/fsdp.py",
    "torchtrain/parallel/zero_trainer.py",
    "torchtrain/parallel/pipeline.py",
    "torchtrain/parallel/pipeline_trainer.py",
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
    # JAX: a place for optax' state and the two rules of its chain; moments are a value with a form of its own
    # torch: AdamW made once for both of its users, and what each process writes of a state
    "optimizer.py": {
        "Moments",
        "scale_by_adam",
        "scale_by_muon",
        "Optimizer.init",
        "Optimizer.abstract",
        "adamw",
        "fragment",
        "moment",
        "replicated",
        "replicated_names",
        "Optimizer.fragments",
        "Optimizer.own",
    },
    # torch: gradients lie beside their parameters; JAX's are a value that the step gives back
    # JAX: the host's numbers as arrays of the program's dtypes; what is differentiated is a function of the parameters
    "step.py": {"gradients_of", "Told", "told_of", "differentiated", "told_shape"},
    # JAX: the TPU's kernel, which torch has not; rows that are split over a mesh
    "attention.py": {"splash_attention", "MeshKernel"},
    # JAX: a length is compiled for, and so is a number of rows; on a CPU each layer is a call of its own
    "decode.py": {"cache_slots", "Decoder", "MANY", "WORTH"},
    # JAX: so are the pieces of a prompt, and the slots that a step reads
    "lanes.py": {"PIECES", "LEAST"},
    # torch: what is cut out of an update's masks and put on a device; JAX does both inside its program
    # JAX: a kernel gathered for its use, and when its gradient is made
    "layers.py": {"Dropout.of", "Dropout.to", "Linear.whole"},
    # JAX: a head's gradient goes to its shards in pieces
    "loss.py": {"PIECES"},
    # JAX: the two ends of a decoding step whose layers are calls of their own
    # torch: each process's part of a tensor, which in JAX the sharding of the arrays knows; what is exported of a state
    # stands with JAX's arrays, in arrays.py; layers are compiled one by one, where JAX scans them
    "model.py": {
        "compile_blocks",
        "abstract_model",
        "look_up",
        "GPT.decode_start",
        "GPT.decode_end",
        "load_tensors",
        "materialize",
        "local_shard",
        "shard_bounds",
        "exported",
    },
    # JAX: one process may hold many devices; its coordination service carries what processes tell each other
    # torch: process groups and the sums over them that the compiler puts in for JAX
    "parallel/processes.py": {
        "Devices",
        "choose_devices",
        "ProcessGrid",
        "ProcessGrid.size",
        "ProcessGrid.describe",
        "ProcessGrid.sum_gradients",
        "ProcessGrid.table",
        "grid_of",
    },
    # torch: a process takes its rows and sums; JAX: weights without a sharding of their own, for decoding
    "parallel/trainer.py": {
        "ParallelTrainer.__init__",
        "ParallelTrainer.measure",
        "ParallelTrainer.save",
        "ParallelTrainer.whole_model",
    },
    # JAX: what trains and what doesn't are two trees, which torch's model holds together and marks
    "adapters.py": {"partition", "combine", "freeze"},
    # torch chooses whether to compile; JAX has global settings, keeps what it compiled, and scans layers or not
    "choices.py": {
        "COMPILE_PAYS_AFTER",
        "COMPILE_CACHE_AFTER",
        "UNROLLED_LAYERS",
        "configure_jax",
        "scans_layers",
    },
}
DIFFERENT_ARGUMENTS = {
    # torch's objects hold their state, JAX gets it passed in: each file says so at the place
    ("checkpoint.py", "load_native"),
    ("step.py", "gradients"),
    ("step.py", "update"),
    ("optimizer.py", "Optimizer.step"),
    ("optimizer.py", "Optimizer.moments"),
    ("optimizer.py", "Optimizer.load"),
    # JAX cuts shards inside, torch is handed them; and activations gathered for a layer are a matter of its policy
    ("attention.py", "attention"),
    ("model.py", "checkpointed"),
    # torch's processes say which one they are, and which axis their parts are summed over
    ("checkpoint.py", "save_native"),
    ("loss.py", "cross_entropy"),
    ("loss.py", "token_logprobs"),
    ("loss.py", "token_logprobs_and_entropy"),
    ("loss.py", "token_logprobs_and_likeliest"),
    ("model.py", "build_model"),
    # torch fills a model's bytes in place, JAX makes arrays for its tree
    ("quantized.py", "quantize_into"),
    # torch has a list of blocks, JAX one block that is told which layer it is
    ("layers.py", "Block.forward"),
    ("layers.py", "Block.decode"),
    # a kernel that was gathered together with another's
    ("layers.py", "Linear.forward"),
}
CONSTRUCTORS = {"model.py", "layers.py", "adapters.py", "quantized.py", "optimizer.py"}
"""Files whose constructors differ: nnx's layers are made stacked and of a dtype, torch's are moved and cast."""


def arguments(node: ast.FunctionDef) -> str:
    """Names, kinds and defaults of the arguments, without their types."""
    a = node.args
    for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
        arg.annotation = None
    return ast.unparse(a)


def public(stack: str, name: str) -> list[tuple[str, str]]:
    """Public constants, functions, classes and methods of a module, in order; nnx's `__call__` is torch's `forward`."""
    found: list[tuple[str, str]] = []
    for node in ast.parse((ROOT / stack / name).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [(target.id, "constant") for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef):
            found.append((node.name, "class"))
            for method in (m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)):
                called = "forward" if method.name == "__call__" else method.name
                made = called == "__init__" and name not in CONSTRUCTORS
                if not node.name.startswith("_") and (made or not called.startswith("_")):
                    found.append((f"{node.name}.{called}", method))
    shown = [(key, node) for key, node in found if not key.startswith("_")]
    return [(key, node if isinstance(node, str) else arguments_of(name, key, node)) for key, node in shown]


def arguments_of(name: str, key: str, node: ast.FunctionDef) -> str:
    """The arguments that the twin must have too."""
    return "any arguments" if (name, key) in DIFFERENT_ARGUMENTS else arguments(node)


def is_one_sided(name: str, key: str) -> bool:
    """Whether a name, or the class that it belongs to, is one stack's alone."""
    return bool({key, key.split(".")[0]} & ONE_SIDED.get(name, set()))


@pytest.mark.parametrize("name", FILES)
def test_twins_show_the_same_names_in_the_same_order(name):
    torch, jax = ([entry for entry in public(stack, name) if not is_one_sided(name, entry[0])] for stack in STACKS)
    assert torch == jax


@pytest.mark.parametrize("name", ONE_SIDED)
def test_no_exception_outlives_its_reason(name):
    torch, jax = ({entry[0] for entry in public(stack, name)} for stack in STACKS)
    assert ONE_SIDED[name] <= torch ^ jax


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

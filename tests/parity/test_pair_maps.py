"""Maps of other people's pairs: steps read off a converter, proposals, what a file may say, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coretrain.base.errors import exits_cleanly
from parity.pairs import command
from parity.pairs.infer import by_converter, steps_of
from parity.pairs.jax_side import model_of
from parity.pairs.mapping import Entry, Map, read_map, write_map
from parity.pairs.propose import proposed
from parity.pairs.steps import carried_out
from tests.support import own_pairs
from tests.support.commands import ROOT
from tests.support.refusal import refused

PAIR = ROOT / "tests" / "support" / "own_pairs.py"


@pytest.mark.parametrize(
    ("shape", "moved", "steps"),
    [
        ((4, 4), lambda a: a, []),
        ((4, 4), lambda a: a.T, ["transpose 1 0"]),
        ((8, 4, 3, 3), lambda a: a.transpose(2, 3, 1, 0), ["transpose 2 3 1 0"]),
        ((8, 4, 3, 3), lambda a: a.transpose(2, 3, 0, 1)[::-1, ::-1], ["transpose 2 3 0 1", "flip 0 1"]),
        ((12, 4), lambda a: a[4:8].T.reshape(4, 2, 2), ["reshape 6 2 4", "split 0 3 1", "transpose 2 0 1"]),
        ((4, 12), lambda a: a[:, 4:8], ["split 1 3 1"]),
        ((12, 4), lambda a: a.reshape(2, 3, 2, 4)[:, 1], ["reshape 2 6 4", "split 1 3 1"]),
        ((8, 4), lambda a: a.reshape(2, 2, 2, 4).transpose(0, 2, 1, 3).reshape(8, 4), None),
        ((5,), lambda a: a[None, :, None], ["reshape 1 5 1"]),
        ((4, 6), lambda a: a[:, 1], ["slice 1 1 2", "reshape 4"]),
        ((7, 4), lambda a: a[1:6], ["slice 0 1 6"]),
    ],
)
def test_steps_are_read_off_the_places_of_elements(shape, moved, steps):
    numbers = np.arange(np.prod(shape)).reshape(shape)
    found = steps_of(moved(numbers), shape)
    assert steps is None or found == steps
    assert np.array_equal(carried_out(torch.from_numpy(numbers), found, "").numpy(), moved(numbers))


def test_a_converter_is_read_off_whatever_it_does():
    """Fused, split, stacked, transposed, scaled, and narrowed to bfloat16, which holds no large number."""

    def convert(state):
        w = [state[f"layers.{i}.w"].to(torch.bfloat16).float().numpy() for i in range(3)]
        return {
            "stack": np.stack([one.T for one in w]),
            "gain": state["gain"].numpy() + 1,
            "both": np.concatenate([state["a"].numpy(), 2 * 0 + state["b"].numpy()], 0),
            "half": state["fused"].numpy()[:, 150:] * 0.5,
        }

    shapes = {f"layers.{i}.w": (20, 30) for i in range(3)}
    shapes |= {"gain": (4,), "a": (2, 3), "b": (5, 3), "fused": (2, 300), "spare": (3,)}
    entries, unused = by_converter(convert, shapes, {})
    assert entries["stack"] == Entry(tuple(f"layers.{i}.w" for i in range(3)), (("transpose 1 0",),), "stack 0")
    assert entries["gain"].then == ("add 1",)
    assert entries["both"] == Entry(("a", "b"), ((),), "concat 0")
    assert entries["half"] == Entry(("fused",), (("split 1 2 1",),), "", ("scale 0.5",))
    assert list(unused) == ["spare"]
    with refused("parity/converter-not-a-map", "sum"):
        by_converter(lambda state: {"sum": state["a"] + state["b"][:2]}, {"a": (2, 3), "b": (5, 3)}, {})


def test_a_proposal_without_a_converter_makes_the_same_leaves_and_a_person_confirms_it(tmp_path):
    torch.manual_seed(0)
    module = own_pairs.Net()
    model = model_of(own_pairs.LinenNet(), None, own_pairs.inputs())
    guess, read = proposed(module, model), proposed(module, model, own_pairs.converted)
    assert (guess.confirmed, read.confirmed) == (False, True)
    assert guess.parameters.keys() == read.parameters.keys() == model.leaves.keys()
    tensors = {name: value.detach() for name, value in module.named_parameters()}
    for leaf, value in read.leaves(tensors).items():
        assert torch.equal(guess.parameters[leaf].made(tensors, leaf), value), leaf
    assert guess.taps.keys() == read.taps.keys() >= {"layers[1]", "layers.norm[0]", "head"}
    write_map(tmp_path / "map.toml", read)
    again = read_map(tmp_path / "map.toml")
    assert (again.parameters, again.taps) == (read.parameters, read.taps)


def test_tied_tensors_and_stars():
    made = Map({"h.*.kernel": Entry(("l.*.w",), (("transpose",),)), "all": Entry(("l.*.w",), ((),), "stack 0")})
    tensors = {f"l.{i}.w": torch.full((2, 3), float(i)) for i in (0, 2, 10)}
    leaves = {f"h.{i}.kernel": np.zeros((3, 2)) for i in (0, 2, 10)} | {"all": np.zeros((3, 2, 3))}
    checked = made.checked(tensors, {}, leaves)
    assert checked.leaves(tensors)["all"][:, 0, 0].tolist() == [0, 2, 10]
    assert checked.parameters["h.10.kernel"].torch == ("l.10.w",)
    tied = Map({"a": Entry(("w",)), "b": Entry(("head",))})
    assert tied.checked({"w": torch.zeros(2)}, {"head": "w"}, {"a": np.zeros(2), "b": np.zeros(2)})


TENSORS = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
LEAVES = {"kernel": np.zeros((3, 2)), "bias": np.zeros(3)}
KERNEL, BIAS = Entry(("w",), (("transpose",),)), Entry(("b",))


@pytest.mark.parametrize(
    ("made", "code", "names"),
    [
        (Map({"kernel": KERNEL}), "map-leaf-missing", ("torch", "b")),
        (Map({"kernel": KERNEL, "bias": Entry(("w",))}), "map-leaf-missing", ("b",)),
        (Map({"kernel": KERNEL}, {"b": "unused"}), "map-leaf-missing", ("jax", "bias")),
        (Map({"kernel": Entry(("w",)), "bias": BIAS}), "map-shape-wrong", ("kernel", "[2, 3]", "[3, 2]")),
        (Map({"kernel": Entry(("v",)), "bias": BIAS}), "map-torch-name-unknown", ("v",)),
        (Map({"kernle": KERNEL, "bias": BIAS}), "map-jax-name-unknown", ("kernle", "kernel")),
        (Map({"kernel": Entry(("w",), (("turn",),)), "bias": BIAS}), "map-step-wrong", ("turn", "kernel")),
        (Map({"kernel": Entry(("w",), (("split 0 4 1",),)), "bias": BIAS}), "map-step-wrong", ("split 0 4 1",)),
        (Map({"kernel": Entry(("w", "b"), ((),), "stack 0"), "bias": BIAS}), "map-join-wrong", ("stack 0",)),
        (Map({"kernel": Entry(("x.*",)), "bias": BIAS}), "map-star-empty", ("x.*",)),
    ],
)
def test_what_a_map_may_not_leave_out_or_get_wrong(made, code, names):
    with refused(f"parity/{code}", *names):
        made.checked(TENSORS, {}, LEAVES)


@pytest.mark.parametrize(
    ("text", "code", "name"),
    [
        ("a = ", "map-unreadable", "--propose"),
        ("[paramters]", "map-field-unknown", "parameters"),
        ("confirmed = 1", "map-confirmed-wrong", "confirmed"),
        ("parameters = 3", "map-field-wrong", "parameters"),
        ('[parameters]\na = { torch = "w", step = ["transpose"] }', "map-entry-wrong", "a"),
        ("[parameters]\na = { torch = [3] }", "map-entry-wrong", "a"),
        ('[unused.tensorflow]\na = "b"', "map-side-unknown", "tensorflow"),
        ("[output]\njax = 3", "map-field-wrong", "output"),
    ],
)
def test_a_map_that_is_none(text, code, name, tmp_path):
    (tmp_path / "map.toml").write_text(text)
    with refused(f"parity/{code}", name, "map.toml"):
        read_map(tmp_path / "map.toml")


def run(capsys, *words):
    """(exit code, stdout, stderr) of the command."""
    with pytest.raises(SystemExit) as stopped:
        exits_cleanly(lambda: command.main([str(word) for word in words]))()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_help_has_every_option(capsys):
    code, out, _ = run(capsys, "--help")
    assert (code, [name for name in command.PAIR if f"--{name} " not in out]) == (0, [])


@pytest.mark.whole
def test_the_command_from_a_proposal_to_a_verdict(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", **own_pairs.inputs())
    words = "--torch", f"{PAIR}:Net", "--jax", f"{PAIR}:LinenNet", "--inputs", "in.npz"
    code, out, _ = run(capsys, *words, "--propose", "map.toml")
    assert (code, "14 leaves, 0 left over" in out, "guess" in out) == (0, True, True)
    code, _, err = run(capsys, *words, "--weights", "map.toml")
    assert (code, "confirmed = true" in err) == (2, True)
    text = (tmp_path / "map.toml").read_text().replace("confirmed = false", "confirmed = true")
    names = '"layers.0.up.weight", "layers.1.up.weight"'
    assert names in text
    (tmp_path / "map.toml").write_text(text.replace(names, '"layers.1.up.weight", "layers.0.up.weight"'))
    code, out, _ = run(capsys, *words, "--weights", "map.toml", "--output", "here")
    assert code == 1
    assert "algorithm: layers.0.up" in out
    assert "reproduce: python -m parity.pairs --torch" in out
    files = {path.name for path in (tmp_path / "here").iterdir()}
    assert files == {f"localize.{kind}" for kind in ("html", "png", "txt", "npz")}
    assert all(name in out for name in files)
    code, _, err = run(capsys, *words, "--propose", "map.toml")
    assert (code, "there already" in err) == (2, True)


FILES = {
    "broken.py": "y = = 1\n",
    "raising.py": "y = 1 / 0\n",
    "lacking.py": "import nowhere_at_all\n",
    "odd.py": "class Net:\n    def __init__(self):\n        raise RuntimeError('no weights')\n"
    "def given(a, b): pass\nclass transform:\n    init = update = None\n",
}
FUNCTIONS = "--torch", f"{PAIR}:torch_window", "--jax", f"{PAIR}:jax_window"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--torch", "x:y"), "--jax is missing"),
        (("--torch", "nowhere.at_all:y", "--jax", "x:y"), "no module nowhere.at_all"),
        (("--torch", "absent.py:y", "--jax", "x:y"), "no file absent.py"),
        (("--torch", f"{PAIR}:Nett", "--jax", "x:y"), "did you mean Net?"),
        (("--torch", "Net", "--jax", "x:y"), "file.py:name"),
        (FUNCTIONS, "needs its inputs"),
        ((*FUNCTIONS, "--inputs", "absent.npz"), "can't be read"),
        ((*FUNCTIONS, "--inputs", "in.npz", "--mask", "mask"), "none of the inputs (x)"),
        ((*FUNCTIONS, "--inputs", "in.npz", "--perturb", "0"), "--torch is a function"),
        ((*FUNCTIONS, "--inputs", "in.npz"), "can't be run"),
        ((*FUNCTIONS, "--inputs", "in.npz", "--steps", "3"), "state."),
        ((*FUNCTIONS, "--inputs", "in.npz", "--converter", "x:y"), "--propose"),
        ((*FUNCTIONS, "--propose", "map.toml"), "name a module"),
        (
            ("--torch", f"{PAIR}:Net", "--jax", f"{PAIR}:Net", "--inputs", "in.npz", "--perturb", "much"),
            "--perturb much",
        ),
        (("--torch-optimizer", "torch.optim:SGD"), "give both"),
        (("--torch-optimizer", "torch.optim:SGD", "--jax-optimizer", "optax:sgd", "--mask", "m"), "--mask"),
        (("--torch-optimizer", "torch.optim:SGD", "--jax-optimizer", "optax:sgd"), "no init and update"),
        (("--torch-optimizer", "torch.optim:SGD", "--jax-optimizer", "optax:sgd", "--steps", "0"), "--steps 0"),
        (("--torch", "x:y", "--jax", "x:y", "--widht", "3"), "--widht"),
        (("--torch", "broken.py:y", "--jax", "x:y"), "broken.py fails (invalid syntax"),
        (("--torch", "raising.py:y", "--jax", "x:y"), "raising.py fails (ZeroDivisionError: division by zero)"),
        (("--torch", "lacking.py:y", "--jax", "x:y"), "lacking.py fails (No module named 'nowhere_at_all')"),
        (("--torch", "odd.py:Net", "--jax", f"{PAIR}:Net"), "odd.py:3 (RuntimeError: no weights)"),
        (
            ("--torch-optimizer", "torch.optim:SGD", "--jax-optimizer", "odd.py:Net"),
            "odd.py:3 (RuntimeError: no weights)",
        ),
        (("--torch-optimizer", "odd.py:given", "--jax-optimizer", "odd.py:transform"), "(TypeError: "),
    ],
)
def test_mistakes_of_users_are_one_sentence(words, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", **own_pairs.inputs())
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    code, _, err = run(capsys, *words)
    assert (code, err.count("\n")) == (2, 1), err
    assert hint in err

"""Every file of a run, of its data and of its exports, damaged at random: nothing that is read goes wrong in silence.

Each damage is refused in a sentence, or passed over with a warning, or changes nothing: the state after a resume, the
text and the export are those of the whole run, bit for bit. The figures of the whole sweep are in docs/LOG.md.
"""

from __future__ import annotations

import importlib
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of
from coretrain.checkpoint.interchange import load_interchange, newest_interchange
from coretrain.inference.generate import generate_text
from coretrain.journal.metrics import read_metrics
from coretrain.runs.convert import export_run, import_run
from coretrain.training.runner import run
from tests.support.damages import damage
from tests.support.whole_runs import arguments

pytestmark = pytest.mark.whole

SMALL = ["--model.layers=1", "--model.width=16", "--model.heads=2", "--model.context=16", "--data.tokenizer=trained"]
SMALL += ["--data.tokenizer_vocab=270", "--train.updates=4", "--train.eval_interval=2", "--checkpoint.interval=2"]
SMALL += ["--train.batch_size=2", "--checkpoint.keep=3", "--execution.compile=off", "--execution.device=cpu"]
SMALL += ["--schedule.warmup_updates=1", "--journal.tensorboard=true", "--model.residual_dropout=0"]
SAID = re.compile(r"^warning: |without a tokenizer", re.MULTILINE)
CASES = {
    "config.json": ("resume", "generate", "convert"),
    "metrics.jsonl": ("resume",),
    "tokenizer_facts.json": ("resume", "generate", "convert"),
    "tokenizer.tiktoken": ("resume", "generate", "convert"),
    "tensorboard/*": ("resume",),
    "report.html": ("resume",),
    "checkpoints/best.json": ("generate", "resume"),
    "checkpoints/*/manifest.json": ("generate", "resume", "convert"),
    "checkpoints/*/state/**/*": ("generate", "resume", "convert"),
    "interchange/*/manifest.json": ("convert", "generate", "resume"),
    "interchange/*/*.safetensors": ("convert", "generate", "resume"),
    "../cache/*/manifest.json": ("resume",),
    "../cache/*/*.bin": ("resume",),
    "../cache/*/tokenizer*": ("resume",),
    "../hf/*": ("import hf",),
    "../model.gguf*": ("import model.gguf",),
}
"""Files of a run and its data, and what reads them."""


@dataclass(frozen=True)
class Place:
    """A run with its data, whole, and what comes of it."""

    root: Path
    stack: str
    outcomes: dict[str, object]

    def copy(self, to: Path) -> Path:
        """All of it in a fresh folder `to`."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.root, to)
        return to / "run"


def outcome(action: str, folder: Path, stack: str, capsys) -> tuple[object, str]:
    """What comes of a run's folder, and what was said of it."""
    make = importlib.import_module(f"{stack}train.parallel.choose").make_trainer
    capsys.readouterr()  # what was said before
    if action == "resume":
        cache = f"--data.cache={folder.parent / 'cache'}"
        assert run(["--resume", str(folder), "--train.updates=5", cache], stack, make) == 0
        said = capsys.readouterr()
        updates, evaluations, _ = read_metrics(folder)
        steps = [row["update"] for row in (*updates, *evaluations)]
        return tensors(folder) | {"journal": steps}, said.err
    if action == "generate":
        each = importlib.import_module(f"{stack}train.generate").generate_each
        words, made = [str(folder), "def", "--temperature", "0", "--tokens", "6"], []

        def making(*given):
            made.append(make(*given))
            return made[0]

        generate_text(words, stack, making, each)
        said, weights = capsys.readouterr(), made[0].export()["parameters"]
        return {"text": said.out} | {name: np.asarray(weights[name]).tobytes() for name in weights}, said.err
    if action == "convert":
        lines = export_run(folder, folder.parent / "new", "hf")
        return {path.name: sha256_of(path) for path in (folder.parent / "new").iterdir()}, "\n".join(lines)
    new = folder.parent / "new"
    lines = import_run(folder.parent / action.split()[1], new)
    return tensors(new) | {"facts": (new / "tokenizer_facts.json").read_bytes()}, "\n".join(lines)


def tensors(folder: Path) -> dict[str, object]:
    """The tensors of a run's newest state."""
    groups = load_interchange(newest_interchange(folder)).groups
    return {f"{group}/{name}": held[name].tobytes() for group, held in groups.items() for name in held}


@pytest.fixture(scope="module")
def places(corpus, tmp_path_factory):
    """A function: the whole run of a stack, made once."""
    made: dict[str, Place] = {}

    def place(stack: str) -> Place:
        if stack not in made:
            root = tmp_path_factory.mktemp(stack)
            words = arguments(corpus, *SMALL, f"--data.cache={root / 'cache'}", f"--output={root / 'run'}")
            make = importlib.import_module(f"{stack}train.parallel.choose").make_trainer
            assert run(words, stack, make) == 0
            for name in ("hf", "model.gguf"):
                export_run(root / "run", root / name, "gguf" if name.endswith("gguf") else "hf")
            made[stack] = Place(root, stack, {})
        return made[stack]

    return place


def tried(place, pattern, action, draw, scratch, capsys) -> tuple[str, str]:
    """Damage one file and read it: `refused`, `said` or `harmless`, and what was done to it."""
    if action not in place.outcomes:
        place.outcomes[action] = outcome(action, place.copy(scratch), place.stack, capsys)[0]
    folder = place.copy(scratch)
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    path = files[int(draw.integers(0, len(files)))]
    words = f"{path.relative_to(folder.parent)}: {damage(path, draw, files)}, {action}"
    refusal = ""
    try:
        found, said = outcome(action, folder, place.stack, capsys)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal, words
        assert str(scratch) in refusal or path.name in refusal, f"{words}: {refusal}"
        return "refused", words
    if found == place.outcomes[action]:
        return "harmless", words
    assert SAID.search(said), f"{words}: another outcome, without a word"
    return "said", words


def sweep(place, cases, count, scratch, capsys, seed=0) -> Counter[str]:
    """`count` damages of each kind of file, read in each of its ways in turns."""
    faults, total = [], Counter[str]()
    for kind, (pattern, actions) in enumerate(cases.items()):
        draw, counts = np.random.default_rng([seed, kind]), Counter[str]()
        for number in range(count):
            action = actions[number % len(actions)]
            try:
                counts[tried(place, pattern, action, draw, scratch, capsys)[0]] += 1
            except Exception as error:
                faults.append(f"{pattern} {number} {action}: {type(error).__name__}: {error}"[:600])
                counts["wrong"] += 1
        total += counts
        with capsys.disabled():
            print(f"\n{place.stack} {pattern}: {dict(counts)}", end="")
    assert not faults, "\n".join(faults)
    return total


@pytest.mark.parametrize(
    ("stack", "cases", "count"),
    [("torch", CASES, 2), ("jax", {"checkpoints/update-00000004/state/**/*": ("generate",)}, 3)],
    ids=["torch", "jax"],
)
def test_damage_is_refused_said_or_harmless(stack, cases, count, places, tmp_path, capsys):
    """A few; of JAX's run what no other reads."""
    assert sweep(places(stack), cases, count, tmp_path / "place", capsys).keys() & {"refused", "said"}


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_two_hundred_damages_of_every_file(stack, places, tmp_path, capsys):
    sweep(places(stack), CASES, 200, tmp_path / "place", capsys)

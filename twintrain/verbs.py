"""The verbs of `twintrain`: where the code of each is, what it does, and the options it has. Importing this is quick.

The help, the completion of shells and the tests read it here; no framework and no config is imported for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STACKS = ("torch", "jax")
SHELLS = ("bash", "zsh", "fish")
Values = tuple[str, ...] | None
"""What may stand after an option: one of these; anything where there are none; nothing after a switch (None)."""
ANY: Values = ()
SWITCH: Values = None
PRESETS: Values = ("PRESETS",)
"""A preset, or a TOML file."""


@dataclass(frozen=True)
class Verb:
    """One verb."""

    module: str
    """Its `main` takes the words after the verb and the program's name."""
    summary: str
    options: Mapping[str, Values] = field(default_factory=dict)
    fields: bool = False
    """It takes the fields of a config too, as `--section.field VALUE`."""
    words: Values = ANY
    """What its words are, beside options: anything is a file, a folder or a text."""


_TEXT: dict[str, Values] = {
    "--stack": STACKS,
    "--adapter": ANY,
    "--tokens": ANY,
    "--temperature": ANY,
    "--top-k": ANY,
    "--top-p": ANY,
    "--seed": ANY,
    "--history": ANY,
}
_FORMS: Values = ("hf", "huggingface", "peft", "gguf", "onnx", "interchange")

VERBS = {
    "train": Verb(
        "twintrain.train",
        "train a GPT, or go on with a run",
        {"--stack": STACKS, "--output": ANY, "--from": ANY, "--resume": ANY, "--spawn": SWITCH},
        fields=True,
        words=PRESETS,
    ),
    "generate": Verb("twintrain.generate", "text from a run", {**_TEXT, "--chat": SWITCH}),
    "chat": Verb("twintrain.chat", "questions to a run on the line, or a conversation with it", _TEXT),
    "serve": Verb(
        "twintrain.serve",
        "a run as a server: OpenAI's endpoints, and a page to talk to it",
        {
            "--stack": STACKS,
            "--adapter": ANY,
            "--host": ANY,
            "--port": ANY,
            "--api-key-file": ANY,
            "--rows": ANY,
            "--waiting": ANY,
            "--slots": ANY,
            "--tokens": ANY,
            "--timeout": ANY,
        },
    ),
    "evaluate": Verb(
        "twintrain.evaluate",
        "how good a run is: tasks, running text, another run beside it",
        {"--stack": STACKS, "--tasks": ANY, "--compare": ANY, "--adapter": ANY, "--task-folder": ANY, "--few-shot": ANY}
        | {"--limit": ANY, "--seed": ANY, "--chat": SWITCH, "--output": ANY, "--samples": ANY},
    ),
    "diagnose": Verb(
        "twintrain.diagnose",
        "how a run went, in words, and what to change",
        {"--measure": SWITCH, "--stack": STACKS, "--output": ANY},
    ),
    "prepare": Verb(
        "twintrain.prepare", "make a run's tokenizer and shards of its data, ahead of it", fields=True, words=PRESETS
    ),
    "convert": Verb(
        "twintrain.convert",
        "models in and runs out: Hugging Face, PEFT, GGUF, ONNX",
        {"--to": _FORMS, "--format": _FORMS, "--quantize": ("none", "f16", "q8_0", "q4_0"), "--merge": SWITCH},
        fields=True,
    ),
    "corpus": Verb(
        "twintrain.corpus",
        "raw pages to documents for training: read, clean, deduplicate",
        {
            "--input": ANY,
            "--output": ANY,
            "--set": ANY,
            "--workers": ANY,
            "--engine": ANY,
            "--fresh": SWITCH,
        }
        | {"--why": ANY},
    ),
    "plan": Verb(
        "twintrain.plan",
        "what a run takes and costs on a machine, and the setting to choose",
        {"--on": ANY, "--accelerators": ANY, "--price": ANY, "--device-price": ANY, "--tokens": ANY, "--served": ANY}
        | {"--no-compile": SWITCH, "--plot": ANY, "--json": SWITCH},
        fields=True,
        words=PRESETS,
    ),
    "doctor": Verb("twintrain.doctor", "what this machine has, and what would be chosen on it", {"--no-peaks": SWITCH}),
    "bench": Verb(
        "twintrain.bench.command",
        "speed and memory of both stacks here, beside installed peers",
        {"--what": ("training", "generation"), "--only": ANY, "--layers": ANY, "--width": ANY, "--vocab": ANY}
        | {"--batch": ANY, "--context": ANY, "--rounds": ANY, "--nanogpt": ANY, "--markdown": ANY, "--json": ANY},
    ),
    "twins": Verb("twintrain.twins", "two runs of one config as one picture"),
    "localize": Verb(
        "twintrain.localize",
        "where two stacks, two runs or anybody's two models begin to differ",
        {"--layers": ANY, "--width": ANY, "--output": ANY, "--inputs": ANY, "--torch": ANY, "--jax": ANY}
        | {"--params": ANY, "--weights": ANY, "--mask": ANY, "--propose": ANY, "--converter": ANY, "--perturb": ANY}
        | {"--torch-optimizer": ANY, "--jax-optimizer": ANY, "--steps": ANY},
        fields=True,
        words=PRESETS,
    ),
    "parity": Verb(
        "twintrain.judge",
        "prove on this machine that both stacks compute the same training",
        {"--device": ("cpu", "cuda", "mps", "tpu"), "--config": PRESETS, "--layers": ANY, "--width": ANY}
        | {"--results": ANY, "-m": ("scale", "mutation"), "-k": ANY, "-n": ANY},
    ),
    "docstrings": Verb("twintrain.docstrings", "make a small data set of this Python's docstrings", {"--limit": ANY}),
    "completion": Verb("twintrain.completion", "print what makes a shell complete all of this", words=SHELLS),
}

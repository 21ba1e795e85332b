"""`python -m jaxtrain.generate RUN PROMPT ...`: text from a trained run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from coretrain.base.errors import exits_cleanly
from coretrain.base.interrupts import loading_modules
from coretrain.inference.generate_options import options
from coretrain.training.help import asks_for_help

if TYPE_CHECKING:
    import numpy as np

    from coretrain.config.run import RunConfig
    from coretrain.contract.sampling import Sampling
    from coretrain.inference.generate import Prompts
    from jaxtrain.trainer import Trainer


def generate_each(
    stack: Trainer,
    adapters: Sequence[tuple[RunConfig, Mapping[str, np.ndarray]]],
    asked: Sequence[Prompts],
    tokens: int,
    sampling: Sampling,
) -> Iterator[list[list[int]]]:
    """As `generate`, by the model of `stack`, a `Trainer`, with one adapter after the other at work: one base for all.

    An adapter is its run's config and tensors, as `AdapterBank.add` takes them; each is asked its own of `asked`. The
    stack's config says how the base is held, and what it has of an adapter itself is taken off.
    """
    from jaxtrain.adapters import Adapters
    from jaxtrain.decode import generate

    model = stack.whole_model()
    bank = Adapters(stack.config, model)
    for (config, tensors), one in zip(adapters, asked, strict=True):
        bank.add(config, tensors)
        bank.switch(config.adapter.name)
        yield generate(model, one.prompts, tokens, sampling, one.stop)


def main(argv: Sequence[str] | None = None, program: str = "", chat: bool = False) -> int:
    """Stream text from a trained run, or with `chat` answers; see `--help`. `program` is what was typed."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):  # before the framework is imported, which takes seconds
        options(program or "python -m jaxtrain.generate", chat).print_help()
        return 0
    with loading_modules():
        from coretrain.inference.generate import generate_text
        from jaxtrain.trainer import Trainer

    generate_text(words, "jax", Trainer, generate_each, program, chat)
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()

"""Where do a torch and a JAX computation part, and why? Of one config, or of two runs.

Usage: twintrain localize [CONFIG] [--layers N] [--width N] [--output FOLDER]
                          [--inputs FILE] [--section.field VALUE ...]
       twintrain localize RUN RUN [--output FOLDER]
       twintrain localize gpt2-124m --layers 3 --optimizer.beta2 0.999
       twintrain localize runs/torch runs/jax

  CONFIG    a preset or a .toml file (default tiny), shrunk so that it runs at
            once; the fields are as in twintrain train --help
  RUN RUN   folders of two runs: between which checkpoints they part, and the
            replay of that interval
  --layers  so many layers (default: the config's, at most 2)
  --width   this width (default: the config's, at most 64)
  --output  where the picture, the text and the inputs go (default:
            runs/localize-TIME)
  --inputs  localize.npz of an earlier call: the same weights and batch again

Both stacks are run in float64, which decides whether there is a bug: on their
own, and with JAX given torch's values at every place, where only the part that
makes an error shows it; then backward the same way. Where nothing parts, both
are run in float32, against the noise of the other framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.help import fitted
from coretrain.training.help import asks_for_help
from twintrain.loading import loaded

PROGRAM = "twintrain localize"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """0 where nothing parts, 1 where something does."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):
        print(fitted((__doc__ or "").replace(PROGRAM, program)))
        return 0
    return int(loaded("parity.localize.command").main(words, program))

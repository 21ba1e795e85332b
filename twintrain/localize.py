"""Where do a torch and a JAX computation part, and why? Of one config, two runs, or anybody's pair.

Usage: twintrain localize [CONFIG] [--layers N] [--width N] [--output FOLDER]
                          [--inputs FILE] [--section.field VALUE ...]
       twintrain localize RUN RUN [--output FOLDER]
       twintrain localize --torch MODULE:NAME --jax MODULE:NAME --inputs FILE
                          [--weights MAP] [--mask NAME] [--params MODULE:NAME]
                          [--perturb NUMBER] [--steps N] [--output FOLDER]
       twintrain localize --torch MODULE:NAME --jax MODULE:NAME --propose MAP
                          [--converter MODULE:NAME] [--inputs FILE]
       twintrain localize --torch-optimizer MODULE:NAME
                          --jax-optimizer MODULE:NAME [--steps N]
       twintrain localize gpt2-124m --layers 3 --optimizer.beta2 0.999
       twintrain localize runs/torch runs/jax

  CONFIG    a preset or a .toml file (default tiny), shrunk so that it runs at
            once; the fields are as in twintrain train --help
  RUN RUN   folders of two runs: at which update they part; each run is trained
            again, and both stacks in float64
  --layers  so many layers (default: the config's, at most 2)
  --width   this width (default: the config's, at most 64)
  --output  where page, picture, text and inputs go (default:
            runs/localize-TIME)
  --inputs  localize.npz of an earlier call: the same weights and batch again

Of a pair that isn't ours (docs/bring-your-own.md):

  --torch, --jax  package.module:name, or file.py:name: a model, its class, a
                  function that makes one, or a function of the inputs
  --params        the tree of parameters of a JAX function (parameters, inputs)
  --inputs        a .npz of what both are called with, by name
  --weights       the map: how JAX's leaves are made of torch's tensors
  --propose       write such a map, to be looked at: by shapes and names, or
  --converter     by a function from torch's state dict to JAX's tree
  --mask          the input [batch, positions] that is not 0 at real tokens
  --perturb       weights are changed by up to this, so that no bias is 0
                  (default: 0.2; 0 leaves them)
  --torch-optimizer, --jax-optimizer  a function of parameters, and what optax
                  makes: the same gradients, and the first step that differs
  --steps         of optimizers (default: 50); with --torch and --jax, these are
                  training steps, of a state (inputs named state.NAME)

Both stacks are run in float64, which decides whether there is a bug: on their
own, and teacher-forced: JAX goes on with torch's values at every tap, so that
only the part that makes an error shows it; then backward the same way. Where
nothing parts, both are run in float32, against the noise of the other
framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.help import fitted
from coretrain.training.help import asks_for_help
from twintrain.loading import loaded

PROGRAM = "twintrain localize"
PAIR = (
    *("torch", "jax", "params", "weights", "mask", "propose", "converter", "perturb", "torch-optimizer"),
    *("jax-optimizer", "steps"),
)
"""Options that only a pair of somebody's own has; what they mean is in `parity.pairs.command`."""


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """0 where nothing parts, 1 where something does."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):
        print(fitted((__doc__ or "").replace(PROGRAM, program)))
        return 0
    own = any(word.startswith("--") and word[2:].partition("=")[0] in PAIR for word in words)
    module = "parity.pairs.command" if own else "parity.localize.command"
    return int(loaded(module).main(words, program))

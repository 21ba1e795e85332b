"""The contract carried out in JAX."""

from coretrain.base.interrupts import loading_program

loading_program()  # JAX takes seconds: `python -m jaxtrain.run` is to end quietly by Ctrl-C meanwhile

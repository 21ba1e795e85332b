"""The contract carried out in PyTorch."""

import os

from coretrain.base.interrupts import loading_program

loading_program()  # torch takes seconds: `python -m torchtrain.run` is to end quietly by Ctrl-C meanwhile

# How long OpenMP's threads spin for each other, read when torch is imported. As they come (300,000) they take the cores
# from whatever else runs: with three busy neighbours on two cores an update takes half the time; alone 1% more.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

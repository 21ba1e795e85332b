"""`python -m parity.mutation`: see the package's own text."""

from coretrain.base.errors import exits_cleanly
from parity.mutation.command import main

if __name__ == "__main__":
    exits_cleanly(main)()

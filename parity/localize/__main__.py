"""`python -m parity.localize`: see the package's own text."""

from coretrain.base.errors import exits_cleanly
from parity.localize.command import main

if __name__ == "__main__":
    exits_cleanly(main)()

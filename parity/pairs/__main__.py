"""`python -m parity.pairs`: the localizer for other people's pairs, without the trainers."""

from coretrain.base.errors import exits_cleanly
from parity.pairs.command import main

if __name__ == "__main__":
    exits_cleanly(main)()

"""`python -m parity.localize`: see the package's own text."""

from parity.localize.command import main

main()

"""`python scripts/docstrings.py`: as `twintrain docstrings`."""

from twintrain.docstrings import main

if __name__ == "__main__":
    main()

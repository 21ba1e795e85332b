"""`python scripts/docstrings.py`: as `twintrain docstrings`."""

from twintrain.command import script

if __name__ == "__main__":
    script("docstrings")

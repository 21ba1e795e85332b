"""`python scripts/prepare.py`: as `twintrain prepare`."""

from twintrain.command import script

if __name__ == "__main__":
    script("prepare")

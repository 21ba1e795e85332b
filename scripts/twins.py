"""`python scripts/twins.py`: as `twintrain twins`."""

from twintrain.command import script

if __name__ == "__main__":
    script("twins")

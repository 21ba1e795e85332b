"""`python scripts/convert.py`: as `twintrain convert`."""

from twintrain.command import script

if __name__ == "__main__":
    script("convert")

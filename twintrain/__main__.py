"""`python -m twintrain`: as `twintrain`."""

from twintrain.command import entry

if __name__ == "__main__":
    entry()

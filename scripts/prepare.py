"""`python scripts/prepare.py`: as `twintrain prepare`."""

from twintrain.prepare import main

if __name__ == "__main__":
    main()

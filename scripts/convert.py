"""`python scripts/convert.py`: as `twintrain convert`."""

from twintrain.convert import main

if __name__ == "__main__":
    main()

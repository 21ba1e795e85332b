"""`python scripts/twins.py`: as `twintrain twins`."""

from twintrain.twins import main

if __name__ == "__main__":
    main()

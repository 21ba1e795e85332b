"""`python scripts/plan.py`: as `twintrain plan`."""

from twintrain.plan import main

if __name__ == "__main__":
    main()

"""`python scripts/plan.py`: as `twintrain plan`."""

from twintrain.command import script

if __name__ == "__main__":
    script("plan")

"""`python scripts/doctor.py`: as `twintrain doctor`."""

from twintrain.command import script

if __name__ == "__main__":
    script("doctor")

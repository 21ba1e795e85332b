"""`python scripts/doctor.py`: as `twintrain doctor`."""

from twintrain.doctor import main

if __name__ == "__main__":
    main()

"""A training state on disk, for any stack and any number of devices."""

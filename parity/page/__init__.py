"""The judge's pages: what a session found, and the localizer's player. Each is one file that needs no network."""

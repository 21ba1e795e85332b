"""Whether a text is like good examples or like bad ones."""

"""The stages of a recipe: read, select, deduplicate, write, report; and the run that puts them together."""

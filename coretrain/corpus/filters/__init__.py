"""Rules over signals, and edits of the text."""

"""What is nested so deep that json and tomllib give up."""

DEEP = "[" * 3000 + "]" * 3000

"""The objectives of alignment: preferences, and policies that learn from what they sample."""

"""What a machine offers, and what a run will take of it."""

"""Bad input of every kind, and what is promised of it."""

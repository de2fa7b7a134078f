"""The parts of a day on a GPU; each yields its results by name as it comes to them."""

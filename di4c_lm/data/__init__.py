"""Records, text and images, and the order in which a run sees them."""

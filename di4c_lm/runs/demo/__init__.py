"""A page on this machine where models are sampled side by side, and their samples seen to appear."""

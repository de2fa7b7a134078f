"""What is minimised: one file an objective, its settings and its class together."""

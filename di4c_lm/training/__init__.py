"""The engine, the run's state, the loop, and the objectives they train."""

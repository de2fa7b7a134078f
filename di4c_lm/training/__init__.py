"""The engine, the loop, the EMA, the state of a run and its metric logger."""

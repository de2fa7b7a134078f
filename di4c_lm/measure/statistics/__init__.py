"""Statistics of samples with intervals and tests."""

"""Samples to features to statistics with intervals and tests to tables."""

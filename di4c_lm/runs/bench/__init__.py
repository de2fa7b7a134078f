"""Benchmarks: time and memory of ours beside the plain way, each in processes of its own."""

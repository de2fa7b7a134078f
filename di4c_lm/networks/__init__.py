"""Denoisers and their output heads."""

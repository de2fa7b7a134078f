"""Measures of image samplers."""

"""Measures of text models and their samples."""

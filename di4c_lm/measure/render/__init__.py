"""Measurements as tables, pictures and files."""

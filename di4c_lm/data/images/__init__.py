"""Readers of images, and the ones that are built in."""

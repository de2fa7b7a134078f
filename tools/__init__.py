"""Scripts around the package, each a few lines above what it shows or measures; `python tools/<name>.py`."""

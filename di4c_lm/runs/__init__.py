"""The stages of a run, its folder, its cache and its rounds."""

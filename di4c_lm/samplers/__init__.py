"""One step and one loop for every process and domain; a sampler is its own settings."""

"""One file a format: `recognises`, `read`, `write`."""

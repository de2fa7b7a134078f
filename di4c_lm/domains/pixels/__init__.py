"""Images of ordered levels by tauLDR's Gaussian chain."""

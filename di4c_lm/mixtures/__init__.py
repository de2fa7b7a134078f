"""λ as an object: everything that depends on it, one file a kind."""

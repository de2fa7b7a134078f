"""A kind of data with its networks: one folder each."""

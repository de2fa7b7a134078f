"""Corpora, tokenizers, and the order in which a run sees their sequences."""

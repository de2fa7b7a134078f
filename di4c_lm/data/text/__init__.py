"""Corpora, documents and tokenizers."""

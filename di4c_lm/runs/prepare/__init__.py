"""Data made ready before a run: shards of tokens, codes of images, tokenizers."""

"""One shard format: rows, with an optional column of labels."""

"""What the benchmarks measure with, and what they compare against."""

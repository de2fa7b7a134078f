"""Di4C: few-step mixture students of masked-diffusion language models."""

__version__ = "0.1.0"

"""Di4C: few-step mixture students of masked-diffusion language models."""

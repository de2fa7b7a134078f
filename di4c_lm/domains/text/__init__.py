"""Text by masked diffusion."""

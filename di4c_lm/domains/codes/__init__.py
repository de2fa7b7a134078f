"""Images as a VQGAN's codes by MaskGIT."""

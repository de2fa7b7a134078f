"""Pure, unreduced terms on tensors, each headed by its equation."""

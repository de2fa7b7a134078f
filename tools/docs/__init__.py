"""What makes the documentation site from the code: the reference, formulas, notebooks."""

"""What the settings of all domains must meet."""

from typing import Any

from di4c_lm.core.settings import check
from di4c_lm.mixtures.settings import LatentConfig


def check_lambda(latent: LatentConfig, objective: Any) -> None:
    """Raise `ValueError`, naming the key, for a λ that images do not have, or samples that do not go with its distribution."""
    size = latent.codebook_size
    sizes = size > 0 or latent.path != "classes"
    check(sizes, "lambda.codebook_size", size, "at least 1 when lambda.path=classes")
    if not objective.takes_mixture:
        return
    check_lambdas(latent, objective)
    if latent.is_string:
        inputs = getattr(objective, "distil_inputs", "shared")
        check(inputs == "shared", "objective.distil_inputs", inputs, f"shared when lambda.path={latent.path}")


def check_lambdas(latent: LatentConfig, objective: Any) -> None:
    """Raise `ValueError` for more samples of λ than a codebook has vectors, where they are not enumerated."""
    size, count = latent.codebook_size, objective.num_lambdas
    finite = latent.law == "codebook" and size > 0 and not latent.is_string
    check(not finite or count <= size, "objective.num_lambdas", count, f"at most lambda.codebook_size={size}")

"""What the settings of both image domains must meet."""

from di4c_lm.config.checks import check
from di4c_lm.config.latent import LatentConfig
from di4c_lm.config.objective import Di4CConfig


def check_lambda(latent: LatentConfig, objective: Di4CConfig) -> None:
    """Raise `ValueError`, naming the key, for a λ that images do not have, or draws that do not go with its law."""
    size, count = latent.codebook_size, objective.num_lambdas
    sizes = size > 0 or latent.path != "classes"
    check(sizes, "lambda.codebook_size", size, "a number of classes of at least 1 when lambda.path=classes")
    least = 0 if latent.is_string else 1
    check(count >= least, "objective.num_lambdas", count, f"a value of at least {least}")
    drawn = latent.law == "codebook" and size > 0
    check(not drawn or count <= size, "objective.num_lambdas", count, f"at most lambda.codebook_size={size}")
    if latent.is_string:
        allowed = f"lambda.codebook_size={size}, or 0, when lambda.path={latent.path}: all are enumerated"
        check(count in (0, size) or size == 0, "objective.num_lambdas", count, allowed)
        inputs = objective.distil_inputs
        check(inputs == "shared", "objective.distil_inputs", inputs, f"shared when lambda.path={latent.path}")

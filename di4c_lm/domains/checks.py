"""What the settings of both image domains must meet."""

from di4c_lm.core.settings import check
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.objectives.settings import Di4CConfig, check_draws


def check_lambda(latent: LatentConfig, objective: Di4CConfig) -> None:
    """Raise `ValueError`, naming the key, for a λ that images do not have, or draws that do not go with its law."""
    size, count = latent.codebook_size, objective.num_lambdas
    sizes = size > 0 or latent.path != "classes"
    check(sizes, "lambda.codebook_size", size, "a number of classes of at least 1 when lambda.path=classes")
    least = 0 if latent.is_string else 1
    check(count >= least, "objective.num_lambdas", count, f"a value of at least {least}")
    check_draws(latent, objective)
    if latent.is_string:
        inputs = objective.distil_inputs
        check(inputs == "shared", "objective.distil_inputs", inputs, f"shared when lambda.path={latent.path}")

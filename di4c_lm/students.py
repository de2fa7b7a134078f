"""What all domains make of the settings of λ and of the objective that trains with it."""

import dataclasses

from di4c_lm.config import Di4CConfig, LatentConfig, check


def latent_of(latent: LatentConfig, objective: Di4CConfig) -> LatentConfig:
    """The λ path of the student; a codebook without a size has a vector for each of the L draws."""
    return dataclasses.replace(latent, codebook_size=latent.codebook_size or objective.num_lambdas)


def objective_of(latent: LatentConfig, objective: Di4CConfig) -> Di4CConfig:
    """The objective; where λ is a string of codes it enumerates the codes in place of drawing strings."""
    if not latent.is_string:
        return objective
    samples = objective.consistency_samples or objective.num_lambdas
    return dataclasses.replace(objective, num_lambdas=0, consistency_samples=samples)


def check_lambda(latent: LatentConfig, objective: Di4CConfig) -> None:
    """Raise `ValueError`, naming the key, for a λ that images do not have, or draws that do not go with its law."""
    size, count = latent.codebook_size, objective.num_lambdas
    check(latent.path != "classes", "lambda.path", latent.path, "token, adaln or head: token classes are of text")
    check(latent.trunk == "train", "lambda.trunk", latent.trunk, "train: a frozen network is of token classes")
    check(count >= 1, "objective.num_lambdas", count, "a value of at least 1")
    drawn = latent.law == "codebook" and size > 0
    check(not drawn or count <= size, "objective.num_lambdas", count, f"at most lambda.codebook_size={size}")
    if latent.path == "head":
        allowed = f"lambda.codebook_size={size} when lambda.path=head: all are enumerated"
        check(size in (0, count), "objective.num_lambdas", count, allowed)
        inputs = objective.distil_inputs
        check(inputs == "shared", "objective.distil_inputs", inputs, "shared when lambda.path=head")

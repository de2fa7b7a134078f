"""Di4C's terms with everything materialised, straight from the definitions (Hayakawa et al. 2025, section 3)."""

import math

import torch
from torch import Tensor


def terms(
    log_p_MLS: Tensor,
    example_M: Tensor,
    num_examples: int,
    x_0_M: Tensor,
    teacher_MS: Tensor,
    samples_MI: Tensor | None = None,
    upper_MS: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every field of `Terms`, (B,) each, in the dtype of `log_p_MLS`."""
    num_lambdas = log_p_MLS.shape[1]

    def per_example(value: Tensor) -> Tensor:
        return torch.stack([value[example_M == b].sum(0) for b in range(num_examples)])

    def joint(x_M: Tensor) -> Tensor:
        log_p_ML = log_p_MLS.gather(2, x_M[:, None, None].expand(-1, num_lambdas, 1))[..., 0]
        return math.log(num_lambdas) - per_example(log_p_ML).logsumexp(1)

    def divergence(p_MS: Tensor, log_q_MS: Tensor) -> Tensor:
        return per_example(torch.where(p_MS > 0, p_MS * (p_MS.clamp_min(1e-300).log() - log_q_MS), 0.0).sum(1))

    log_mean_MS = log_p_MLS.logsumexp(1) - math.log(num_lambdas)

    def product(x_M: Tensor) -> Tensor:
        return per_example(log_mean_MS.gather(1, x_M[:, None])[:, 0])

    teacher_MS = teacher_MS.to(log_p_MLS.dtype)
    found = {
        "data_joint": joint(x_0_M),
        "data_product": product(x_0_M),
        "data_marginal": divergence(teacher_MS, log_mean_MS),
        "distil": torch.stack([divergence(teacher_MS, log_p_MLS[:, j]) for j in range(num_lambdas)]).mean(0),
    }
    if samples_MI is not None and upper_MS is not None:
        columns = samples_MI.unbind(1)
        found["consistency_joint"] = torch.stack([joint(x_M) for x_M in columns]).mean(0)
        found["consistency_product"] = torch.stack([product(x_M) for x_M in columns]).mean(0)
        found["consistency_marginal"] = divergence(upper_MS.to(log_p_MLS.dtype), log_mean_MS)
    return found

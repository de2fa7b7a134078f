"""A mixture and Di4C's terms with everything materialised, straight from the definitions (Hayakawa et al. 2025, section 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def divergence(q_S: Tensor, log_p_S: Tensor) -> Tensor:
    """KL(q ‖ p) over the last axis."""
    return torch.where(q_S > 0, q_S * (q_S.clamp_min(1e-300).log() - log_p_S), 0.0).sum(-1)


def reading(
    log_p_MLS: Tensor, example_M: Tensor, num_examples: int, targets_MT: Tensor, distributions: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Every field of `Reading` for L components of equal weight, in the dtype of `log_p_MLS`."""
    num_lambdas = log_p_MLS.shape[1]

    def per_example(value: Tensor) -> Tensor:
        return torch.stack([value[example_M == b].sum(0) for b in range(num_examples)])

    log_p_MLT = log_p_MLS.gather(2, targets_MT[:, None].expand(-1, num_lambdas, -1))
    log_mean_MS = log_p_MLS.logsumexp(1) - math.log(num_lambdas)
    q_MS = [q.to(log_p_MLS.dtype) for q in distributions]
    each = [divergence(q_MS[0], log_p_MLS[:, j]) for j in range(num_lambdas)] if q_MS else []
    return {
        "joint": per_example(log_p_MLT).logsumexp(1) - math.log(num_lambdas),
        "product": per_example(log_mean_MS.gather(1, targets_MT)),
        "divergence": per_example(torch.stack([divergence(q, log_mean_MS) for q in q_MS], 1)),
        "component_divergence": torch.stack([per_example(kl) for kl in each]).mean(0),
    }


def terms(
    log_p_MLS: Tensor,
    example_M: Tensor,
    num_examples: int,
    x_0_M: Tensor,
    samples_MI: Tensor,
    teacher_MS: Tensor,
    marginal_MS: Tensor,
) -> dict[str, Tensor]:
    """The parts of the data and the consistency term, correlation and divergence, and the distillation term; (B,) each."""
    found: dict[str, list[Tensor]] = {
        name: [] for name in ("corr", "marginal", "target_corr", "target_marginal", "distil")
    }
    for b in range(num_examples):
        here = (example_M == b).nonzero()[:, 0]
        log_p_LDS = log_p_MLS[here].transpose(0, 1)
        log_mean_DS = log_p_LDS.exp().mean(0).log()
        place = torch.arange(len(here))

        def corr(
            x_D: Tensor, log_p_LDS: Tensor = log_p_LDS, log_mean_DS: Tensor = log_mean_DS, d: Tensor = place
        ) -> Tensor:
            return log_mean_DS[d, x_D].sum() - log_p_LDS[:, d, x_D].sum(1).exp().mean().log()

        found["corr"].append(corr(x_0_M[here]))
        found["marginal"].append(divergence(teacher_MS[here], log_mean_DS).sum())
        found["target_corr"].append(torch.stack([corr(x_D) for x_D in samples_MI[here].unbind(1)]).mean())
        found["target_marginal"].append(divergence(marginal_MS[here], log_mean_DS).sum())
        found["distil"].append(divergence(teacher_MS[here], log_p_LDS).sum(1).mean())
    return {name: torch.stack(values) for name, values in found.items()}

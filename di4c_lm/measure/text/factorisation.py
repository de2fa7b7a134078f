"""What a sampler of few steps loses to the distribution that its teacher samples one position at a time, in nats, where that is known."""

from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.data.text.synthetic import Source
from di4c_lm.measure.text.likelihood import sampled_step
from di4c_lm.measure.text.mixture import predict
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.rng import KeyedRng


@torch.no_grad()
def factorisation_error(
    model: Any,
    source: Source,
    x_ND: Int64[Tensor, "N D"],
    *,
    steps: int,
    draws: int,
    lambdas: int,
    seed: int,
    batch_size: int = 64,
    left_to_right: bool = False,
) -> Float64[Tensor, " N"]:
    """Nats of each sequence, whose mean is KL(p(x) π(R) ‖ q_K(x | R) π(R)): of p to a sampler of K uniform steps.

    The sampler is the ancestral one, or that from left to right, which has one R. p is the source, which is what its exact marginals
    sample one position at a time; R says which positions each step reveals, which does not depend on x, and
    q_K(x | R) = Π_k q(x_{R_k} | what is visible). So it is the mean over R of the divergences KL(p ‖ q_K(· | R)), and an upper bound on
    KL(p ‖ q_K), whose q_K has R averaged out (Jensen); with one step it is that itself. It is
    Σ_k E[log p(x_{R_k} | visible) - log q(x_{R_k} | visible)], the first by the evidence of what is visible before and after, and 0 for the
    source's own marginals one position at a time.

    A sequence gets `draws` of its steps, stratified, or all where they are no more: an unbiased estimate, whose error is std / sqrt(N). Of
    a λ that is not enumerated (and of a sequential mixture over all masked positions, where others are sampled before those asked for)
    log q is that of the mean over `lambdas` samples: too small on average, and the estimate too large.

    Args:
        model: a `denoiser` and its `process`, which masks.
        x_ND: sequences of the source.
        draws: steps looked at, of each sequence.
        lambdas: samples of λ where it is not enumerated.
        seed: of the masks, which are the same for all models, and of λ.
        left_to_right: whether that is the sampler.
    """
    draws, found = min(draws, steps), []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, of_latents, x_BD = KeyedRng(seed, number_B), KeyedRng(seed + 1, number_B), x_ND[number_B]
        total_B = torch.zeros(len(x_BD), dtype=torch.float64)
        for part in range(draws):
            how: Any = {"steps": steps, "draw": part, "draws": draws, "left_to_right": left_to_right}
            x_t, t_B, revealed_BD = sampled_step(model.process, x_BD, rng, **how)
            positions = Positions.where(revealed_BD)
            prediction = predict(model, x_t, t_B, of_latents, lambdas=lambdas)
            said = prediction.read(positions, positions.gather(x_BD)[:, None])
            x_s = torch.where(revealed_BD, x_BD, x_t)
            total_B += source.log_evidence(x_s) - source.log_evidence(x_t) - said.joint[:, 0].double()
        found.append(total_B * steps / draws)
    return torch.cat(found)

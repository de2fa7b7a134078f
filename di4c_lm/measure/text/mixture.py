"""What a student's λ carries: correlations between positions, in nats, and samples with λ drawn anew, held, or averaged out."""

from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.domains.text.model import TextModel
from di4c_lm.losses.di4c import joint_and_product
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import read_mixture
from di4c_lm.measure.text.gen_ppl import Sampler
from di4c_lm.measure.text.latents import Averaged, calls_of_all, predict
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Prediction, row_chunks, rows_at_once
from di4c_lm.processes.rng import KeyedRng, uniform
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample


@torch.no_grad()
def total_correlation(
    model: TextModel, x_ND: Int64[Tensor, "N D"], *, t: float, lambdas: int, seed: int, batch_size: int = 32
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
    """At x_t of each held-out sequence: what the mixture captures in its own draws, and what that is worth on the text, both in nats.

    First: log mean_λ Π_d p(x̂^d | x_t; λ) - Σ_d log mean_λ p(x̂^d | x_t; λ) for one x̂ drawn from the mixture at all masked positions. Its
    mean is the total correlation, KL(mixture || product of its marginals). Second: the same of the text x_0, the gain in
    its log-likelihood over the product of marginals; below 0 where the correlations are not those of text. Both are exact where a codebook
    is enumerated; otherwise λ is averaged over draws apart from the one that made x̂, which biases the first towards 0.
    Raises `ValueError` for a model without λ.
    """
    if model.denoiser.latent is None:
        raise ValueError("the model has no λ: it is a product, whose total correlation is 0")
    device = next(model.denoiser.parameters()).device
    own, text = [], []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, x_BD = KeyedRng(seed, number_B.to(device)), x_ND[number_B].to(device)
        t_B = torch.full((len(x_BD),), t, dtype=torch.float64, device=device)
        masked_BD = uniform(rng, tuple(x_BD.shape), device) < t
        x_t = torch.where(masked_BD, model.process.mask_id, x_BD)
        positions = Positions.where(masked_BD)
        one = model.denoiser.sample_latents(len(x_BD), 1, lambda shape, rng=rng: uniform(rng, shape, device))
        u_M = uniform(rng, tuple(x_BD.shape), device)[masked_BD]
        drawn_M = _draw(model.denoiser(x_t, t_B.float(), one), positions, u_M)
        many = predict(model, x_t, t_B, rng, lambdas=lambdas)
        features_MLH = many.features[positions.example, :, positions.position]
        targets_M2 = torch.stack([drawn_M, positions.gather(x_BD)], 1)
        log_p_ML2 = read_mixture(features_MLH, positions.position, many.output_head, targets_M2).target_log_p.double()
        joint_B2, product_B2 = joint_and_product(log_p_ML2, positions, many.chain)
        own.append((-joint_B2 - product_B2)[:, 0].cpu())
        text.append((-joint_B2 - product_B2)[:, 1].cpu())
    return torch.cat(own), torch.cat(text)


def _draw(prediction: Prediction, positions: Positions, u_M: Float64[Tensor, " M"]) -> Int64[Tensor, " M"]:
    """One token a site under the one λ of its sequence."""
    features_MH = prediction.features[positions.example, 0, positions.position]
    drawn = [
        sample_categorical(
            prediction.output_head.logits(features_MH[rows], positions.position[rows]).softmax(1), u_M[rows]
        )
        for rows in row_chunks(len(u_M), rows_at_once(prediction.output_head, 0))
    ]
    return torch.cat(drawn) if drawn else positions.position.clone()


def latent_modes(model: TextModel, *, lambdas: int, batch_size: int) -> dict[str, Sampler]:
    """Samplers on uniform steps with λ drawn anew in each call, held over the trajectory, and averaged out of each call (`Averaged`)."""

    def plain(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        return model.sample(num_samples, steps, seed=seed, batch_size=batch_size)

    def frozen(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        return model.sample(num_samples, steps, seed=seed, batch_size=batch_size, hold_latents=True)

    def averaged(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        denoiser: Any = Averaged(model, lambdas=lambdas, seed=seed)
        device = next(model.denoiser.parameters()).device
        rows, calls = [], 0.0
        for number_B in torch.arange(num_samples).split(batch_size):
            start_BD = torch.full((len(number_B), model.length), model.process.mask_id, device=device)
            rng = KeyedRng(seed, number_B.to(device))
            found = sample(denoiser, model.process, start_BD, uniform_grid(steps), rng)
            rows.append(found.x.cpu())
            calls += found.nfe * len(number_B)
        return torch.cat(rows), calls / num_samples * calls_of_all(model, lambdas)

    return {"λ resampled": plain, "λ frozen": frozen, "λ averaged": averaged}

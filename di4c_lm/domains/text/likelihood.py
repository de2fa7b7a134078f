"""How well a product model of text (no λ) explains held-out sequences: MDLM's continuous-time bound on their likelihood."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.domains.text.model import TextModel
from di4c_lm.losses.mdlm import log_linear_weight, mdlm_bound
from di4c_lm.losses.positions import Positions
from di4c_lm.processes.rng import KeyedRng, uniform


@torch.no_grad()
def held_out_bound(
    model: TextModel, x_ND: Int64[Tensor, "N D"], *, draws: int, seed: int, batch_size: int = 64
) -> Float64[Tensor, " N"]:
    """An unbiased estimate, in nats, of the bound on -log p of each sequence (Sahoo et al. 2024, Eq. 10).

    It is the mean over `draws` times, one in each of as many equal parts of (0, 1]; sequence n's depend on (seed, n) alone. Raises
    `ValueError` for a mixture, whose bound this is not.
    """
    if model.denoiser.latent is not None:
        raise ValueError("the bound is that of a model without λ, but this one is a mixture")
    device = next(model.denoiser.parameters()).device
    found = []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng = KeyedRng(seed, number_B.to(device))
        x_BD = x_ND[number_B].to(device)
        total_B = torch.zeros(len(x_BD), dtype=torch.float64, device=device)
        for part in range(draws):
            t_B = 1 - (part + uniform(rng, (len(x_BD),), device)) / draws
            x_t = model.process.corrupt(x_BD, t_B, rng)
            positions = Positions.where(x_t == model.process.mask_id)
            prediction = model.denoiser(x_t, t_B.float())
            features_MH = prediction.features[positions.example, 0, positions.position]
            weight_B = log_linear_weight(t_B)
            total_B += mdlm_bound(features_MH, prediction.output_head, positions, positions.gather(x_BD), weight_B)
        found.append((total_B / draws).cpu())
    return torch.cat(found)

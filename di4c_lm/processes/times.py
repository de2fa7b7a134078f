"""Laws of the training time t and of the hop from t down to u."""

import torch
from jaxtyping import Float
from torch import Tensor

from di4c_lm.config import HopConfig, TimesConfig
from di4c_lm.processes.rng import Rng, uniform

_PAPER_LOW_SHARE = 0.3  # of the draws lie below δ (published configuration of the text run)


def sample_times(
    config: TimesConfig, num_examples: int, rng: Rng, *, delta: float, device: torch.device | str = "cpu"
) -> Float[Tensor, " B"]:
    """Times in (0, 1], one an example.

    `uniform`: on (0, 1]. `paper`: with probability 0.3 uniform on (0, δ], else on (δ, 1]. Then a share `mass_at_one` becomes t = 1, and a
    share `grid_share` a uniform choice among the times of a uniform grid of K steps, K itself uniform in `grid_steps`.
    """
    u_B4 = uniform(rng, (num_examples, 4), device)
    place_B, low_B, kind_B, grid_B = u_B4.unbind(1)
    t_B = 1 - place_B
    if config.law == "paper":
        t_B = torch.where(low_B < _PAPER_LOW_SHARE, delta * t_B, delta + (1 - delta) * t_B)
    counts_K = torch.tensor(config.grid_steps, device=device)
    num_steps_B = counts_K[(low_B * len(counts_K)).long()]
    on_grid_B = ((grid_B * num_steps_B).floor() + 1) / num_steps_B
    t_B = torch.where(kind_B < config.mass_at_one + config.grid_share, on_grid_B, t_B)
    return torch.where(kind_B < config.mass_at_one, 1.0, t_B)


def hop_down(config: HopConfig, t: Float[Tensor, " B"], rng: Rng) -> Float[Tensor, " B"]:
    """u < t, the far end of the teacher's hop; never below t/2, so that the hop fits.

    `fixed`: t - min(size, t/2) (the published rule). `fraction`: (1 - size) t. `log_uniform` and `uniform`: t - u on [low, high].
    """
    if config.law == "fixed":
        return t - torch.clamp(t / 2, max=config.size)
    if config.law == "fraction":
        return t * (1 - config.size)
    v_B = uniform(rng, (len(t),), t.device)
    low, high = config.low, config.high
    hop_B = low * (high / low) ** v_B if config.law == "log_uniform" else low + (high - low) * v_B
    return t - torch.minimum(hop_B, t / 2)

"""Laws of the training time t and of the hop from t down to u."""

import torch
from jaxtyping import Float
from torch import Tensor

from di4c_lm.objectives.settings import HopConfig, TimesConfig
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


def above(t: Float[Tensor, " B"], floor: float | Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """`t` in (0, 1] moved to (floor, 1]."""
    return floor + (1 - floor) * t


def hop_down(config: HopConfig, t: Float[Tensor, " B"], rng: Rng, *, floor: float = 0.0) -> Float[Tensor, " B"]:
    """u < t, the far end of the teacher's hop; never below half the way from t to `floor`, so that the hop fits.

    With t the time above `floor`: `fixed`: t - min(size, t/2) (the published rule). `fraction`: (1 - size) t. `log_uniform` and
    `uniform`: t - u on [low, high].
    """
    room_B = t - floor
    if config.law == "fixed":
        return t - torch.clamp(room_B / 2, max=config.size)
    if config.law == "fraction":
        return floor + room_B * (1 - config.size)
    return t - torch.minimum(hop_size(config, len(t), rng, t.device), room_B / 2)


def hop_size(config: HopConfig, num_examples: int, rng: Rng, device: torch.device | str = "cpu") -> Float[Tensor, " B"]:
    """t - u, one an example, by a law that does not look at t (so not `fraction`)."""
    assert config.law != "fraction"
    low, high = config.low, config.high
    v_B = uniform(rng, (num_examples,), device)
    if config.law == "fixed":
        return torch.full_like(v_B, config.size)
    return low * (high / low) ** v_B if config.law == "log_uniform" else low + (high - low) * v_B


def times_and_hops(
    times: TimesConfig,
    hop: HopConfig,
    num_examples: int,
    rng: Rng,
    *,
    delta: float,
    floor: float,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(t, u) with the hop drawn first, and t above it: t ~ U(floor + hop, 1], u = t - hop (tauLDR, Di4C section F.1)."""
    hop_B = hop_size(hop, num_examples, rng, device)
    t_B = above(sample_times(times, num_examples, rng, delta=delta, device=device), floor + hop_B)
    return t_B, t_B - hop_B

"""Exact samples of categorical and Poisson distributions: one 64-bit uniform each, inverse distribution function in float64."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_BLOCK = 256  # the inverse is looked up among the sums of blocks of this many states, then inside one


def sample_categorical(p_NS: Float[Tensor, "N S"], u: Float64[Tensor, "N *T"]) -> Int64[Tensor, "N *T"]:
    """States sampled from the rows of `p_NS`, one for each uniform in `u` ((N,), or (N, T) for T samples a row).

    `p_NS` need not be normalised; it must be finite and non-negative with a positive total a row, in any float dtype. The running sums
    over blocks, and inside the block chosen, are float64, so a state of relative probability 1e-12 comes at its true rate; one of
    probability 0 never does. Raises `ValueError` where the shapes disagree.
    """
    num_rows, num_states = p_NS.shape
    if u.dim() not in (1, 2) or len(u) != num_rows:
        raise ValueError(f"u must hold uniforms for {num_rows} rows, shape (N,) or (N, T), got {tuple(u.shape)}")
    u_NT = u if u.dim() == 2 else u[:, None]
    if u_NT.numel() == 0:
        return torch.empty_like(u, dtype=torch.int64)
    whole = num_states // _BLOCK * _BLOCK
    wide = torch.promote_types(p_NS.dtype, torch.float32)
    sums_NK = p_NS[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1, dtype=wide) if whole else p_NS[:, :0].to(wide)
    if whole < num_states:
        sums_NK = torch.cat([sums_NK, p_NS[:, whole:].sum(-1, keepdim=True, dtype=wide)], 1)
    sums_NK = sums_NK.double()
    block_NT, share_NT = _invert(sums_NK, u_NT)
    offset_W = torch.arange(min(_BLOCK, num_states), device=p_NS.device)
    states_NTW = block_NT[..., None] * _BLOCK + offset_W
    inside_NTW = p_NS.gather(1, states_NTW.clamp_max(num_states - 1).flatten(1)).view(states_NTW.shape).double()
    inside_NTW = torch.where(states_NTW < num_states, inside_NTW, 0.0)
    index_NT, _ = _invert(inside_NTW.flatten(0, 1), share_NT.reshape(-1, 1))
    state_NT = block_NT * _BLOCK + index_NT.view(block_NT.shape)
    return state_NT if u.dim() == 2 else state_NT[:, 0]


def _invert(
    p_NK: Float64[Tensor, "N K"], u_NT: Float64[Tensor, "N T"]
) -> tuple[Int64[Tensor, "N T"], Float64[Tensor, "N T"]]:
    """First index whose running sum exceeds u times the total, and what share of that state lies below the target."""
    cdf_NK = p_NK.cumsum(1)
    target_NT = u_NT * cdf_NK[:, -1:]
    # Where rounding leaves no such index, the last state of positive probability.
    last_N1 = p_NK.shape[1] - 1 - (p_NK > 0).flip(1).int().argmax(1, keepdim=True)
    index_NT = torch.minimum(torch.searchsorted(cdf_NK, target_NT, right=True), last_N1)
    mass_NT = p_NK.gather(1, index_NT)
    below_NT = cdf_NK.gather(1, index_NT) - mass_NT
    return index_NT, ((target_NT - below_NT) / mass_NT).clamp(0, 1 - 2.0**-53)


def kl_divergence(q_MS: Float[Tensor, "M S"], log_p_MS: Float[Tensor, "M S"]) -> Float[Tensor, " M"]:
    """Σ_v q(v) (log q(v) - log p(v)) of each row, nats; taken state by state, since the two sums would cancel where q is near p.

    q gets no gradient; `log_p_MS` must be finite.
    """
    q_MS = q_MS.to(log_p_MS.dtype)
    return -torch.addcmul(torch.special.entr(q_MS), q_MS, log_p_MS).sum(1)


def sample_categorical_fp32(p_NS: Float[Tensor, "N S"], u_NS: Float[Tensor, "N S"]) -> Int64[Tensor, " N"]:
    """The published codes' samples with float32 exponential noise, argmax of p / (1e-10 - log(u + 1e-10)).

    They truncate rare states (a token of probability 1e-6 comes at 62 % of its rate in 16 steps), and serve only to reproduce old tables.
    """
    return (p_NS / (1e-10 - torch.log(u_NS + 1e-10))).argmax(-1)


def sample_poisson(mean: Float64[Tensor, "..."], u: Float64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The least k with P(X <= k) > u, for X of the given means and uniforms `u` of the same shape.

    P(X <= k) is the regularised incomplete gamma function Q(k + 1, mean). Raises `ValueError` for a negative or non-finite mean.
    """
    if not bool((mean.isfinite() & (mean >= 0)).all()):
        raise ValueError("mean: expected finite values of at least 0")
    high = (mean + 12 * mean.sqrt() + 40).ceil()  # P(X > high) is below 2^-53, and with it every uniform's
    low = torch.full_like(high, -1)
    widest = float(high.max()) + 1 if high.numel() else 1.0
    while widest > 1:
        middle = ((low + high) / 2).floor()
        above = torch.special.gammaincc((middle + 1).clamp_min(1), mean) > u
        beyond = middle < 0
        high = torch.where(above & ~beyond, middle, high)
        low = torch.where(above & ~beyond, low, middle)
        widest = float((high - low).max())
    return high.long()

"""Randomness as an argument: a generator, or noise keyed by sample so that no rank, batch or device can change it."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the increment of SplitMix64, as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _mix(bits: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that passes BigCrush on counters."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Int64[Tensor, "..."], by: int) -> Int64[Tensor, "..."]:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _weyl(count: int) -> int:
    """`count` increments, wrapped to a signed 64-bit word."""
    return (count * _GOLDEN + 2**63) % 2**64 - 2**63


class KeyedRng:
    """Counter-based noise: tensor number n of example b depends on (seed, keys[b], n) alone.

    `keys` is (B,) or (B, K); the K columns, such as sample id and epoch, are hashed into one key. Each call of `uniform` makes one.
    """

    def __init__(self, seed: int, keys: Int64[Tensor, "B *K"]) -> None:
        columns = keys[:, None] if keys.dim() == 1 else keys
        hashed_B = _mix(torch.full_like(columns[:, 0], seed) + _GOLDEN)
        for column_B in columns.unbind(1):
            hashed_B = _mix((hashed_B ^ column_B) + _GOLDEN)
        self._key_B = hashed_B
        self._draws = 0

    def uniform(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Float64[Tensor, "..."]:
        """Uniforms on multiples of 2^-53 in [0, 1); `shape[0]` is the number of keys."""
        if shape[0] != len(self._key_B):
            raise ValueError(f"shape[0] must be the number of keys, {len(self._key_B)}, got shape {shape}")
        self._draws += 1
        stream_B = _mix(self._key_B.to(device) + _weyl(self._draws))
        count = 1
        for size in shape[1:]:
            count *= size
        counter = torch.arange(1, count + 1, device=device) * _GOLDEN
        bits = _mix(stream_B[:, None] + counter)
        return (_shift_right(bits, 11).double() * 2.0**-53).view(shape)

    def split(self, num_children: int) -> "KeyedRng":
        """A rng of B * `num_children` keys, example-major: child l of example b depends on (seed, keys[b], l) and the calls so far."""
        self._draws += 1
        stream_B = _mix(self._key_B + _weyl(self._draws))
        child_C = torch.arange(num_children, device=stream_B.device)
        children = object.__new__(KeyedRng)
        children._key_B = _mix((stream_B[:, None] ^ child_C) + _GOLDEN).flatten()
        children._draws = 0
        return children


Rng = torch.Generator | KeyedRng


def uniform(rng: Rng, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Float64[Tensor, "..."]:
    """Float64 uniforms in [0, 1) of `shape`, from a generator or keyed by example (then `shape[0]` is B)."""
    if isinstance(rng, KeyedRng):
        return rng.uniform(shape, device)
    return torch.rand(shape, generator=rng, dtype=torch.float64, device=rng.device).to(device)


def split(rng: Rng, num_children: int) -> Rng:
    """The rng of `num_children` copies of each example; a generator, which knows no examples, serves as it is."""
    return rng.split(num_children) if isinstance(rng, KeyedRng) else rng


def normal(rng: Rng, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Float64[Tensor, "..."]:
    """Standard normals by the inverse distribution function of one uniform each."""
    centred = uniform(rng, shape, device) + 2.0**-54
    return torch.special.ndtri(centred)

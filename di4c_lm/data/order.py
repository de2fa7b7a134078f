"""The order of an epoch, a function of (seed, epoch) alone: no state to save, the same with any version of NumPy."""

import numpy as np
from jaxtyping import Int, UInt

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: UInt[np.ndarray, " N"]) -> UInt[np.ndarray, " N"]:
    """A bijection of the 64-bit integers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, epoch: int) -> UInt[np.ndarray, " 1"]:
    return mix(mix(np.array([seed], dtype=np.uint64) + _GOLDEN) ^ np.array([epoch], dtype=np.uint64) + _GOLDEN)


def permutation(size: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """The numbers 0..size-1 in the order of epoch `epoch` (int64)."""
    return np.argsort(mix(_key(seed, epoch) + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN), kind="stable")


def scattered(index_B: Int[np.ndarray, " B"], size: int, seed: int, epoch: int) -> Int[np.ndarray, " B"]:
    """What stands at the places `index_B` of another order of 0..size-1 than `permutation`'s, at no cost for the places not asked for.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of 2k bits, 4^k >= size; one that leaves 0..size-1 goes through again
    until it is back (cycle walking: Black and Rogaway 2002), at most some times, as 4^k < 4 size.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = mix(_key(seed, epoch) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)
    found_B = index_B.astype(np.uint64)
    outside_B = np.ones(len(found_B), dtype=bool)
    while outside_B.any():
        left, right = found_B[outside_B] >> half, found_B[outside_B] & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        found_B[outside_B] = left << half | right
        outside_B = found_B >= np.uint64(size)
    return found_B.astype(np.int64)


def drawn(size: int, seed: int, epoch: int, number: int) -> int:
    """The `number`-th draw of an epoch, uniform on 0..size-1 (to 2^-64)."""
    value = mix(_key(seed, epoch) ^ mix(np.array([number], dtype=np.uint64) + _GOLDEN))
    return int(value[0]) * size >> 64

"""The order of an epoch, a function of (seed, epoch) alone: no state to save, the same with any version of NumPy."""

import numpy as np
from jaxtyping import Int, UInt


def mix(x: UInt[np.ndarray, " N"]) -> UInt[np.ndarray, " N"]:
    """A bijection of the 64-bit integers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(size: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """The numbers 0..size-1 in the order of epoch `epoch` (int64)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = mix(mix(np.array([seed], dtype=np.uint64) + golden) ^ np.array([epoch], dtype=np.uint64) + golden)
    return np.argsort(mix(key + np.arange(1, size + 1, dtype=np.uint64) * golden), kind="stable")

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.processes.rng import KeyedRng, normal, split, uniform

KEYS = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 50)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**62), KEYS, st.randoms(use_true_random=False))
def test_an_examples_noise_depends_on_its_key_alone(seed: int, keys: list[tuple[int, int]], random) -> None:
    order = random.sample(range(len(keys)), len(keys))
    together = KeyedRng(seed, torch.tensor(keys))
    apart = KeyedRng(seed, torch.tensor(keys)[order[:1]])
    shuffled = KeyedRng(seed, torch.tensor(keys)[order])
    for shape in ((3,), (2, 2), ()):
        all_of = uniform(together, (len(keys), *shape))
        assert torch.equal(uniform(shuffled, (len(keys), *shape)), all_of[order])
        assert torch.equal(uniform(apart, (1, *shape)), all_of[order[:1]])


def test_children_depend_on_their_parent_and_number_alone() -> None:
    keys = torch.tensor([[7, 0], [9, 1], [7, 2]])
    both, one = KeyedRng(3, keys), KeyedRng(3, keys[1:2])
    for rng in (both, one):
        uniform(rng, (len(rng._key_B), 4))
    of_both, of_one = split(both, 5), split(one, 5)
    expected = uniform(of_both, (15, 6)).view(3, 5, 6)
    assert torch.equal(uniform(of_one, (5, 6)), expected[1])
    assert len(expected.flatten().unique()) == 90
    assert torch.equal(uniform(split(KeyedRng(3, keys), 5), (15, 6)), expected) is False  # other uniforms came first


def test_other_seed_key_epoch_or_draw_is_other_noise() -> None:
    rngs = [KeyedRng(seed, torch.tensor([[key, epoch]])) for seed in (0, 1) for key in (0, 1) for epoch in (0, 1)]
    uniforms = torch.cat([uniform(rng, (1, 8)).flatten() for rng in rngs for _ in range(3)])
    assert len(uniforms.unique()) == len(uniforms)


def test_noise_is_the_same_forever() -> None:
    """Resumed runs depend on these numbers."""
    uniforms = uniform(KeyedRng(0, torch.tensor([[0, 0], [1, 0]])), (2, 2))
    expected = [[0.47141042966848024, 0.7247520786262142], [0.9752873302169826, 0.8122692366755755]]
    assert uniforms.tolist() == expected


@pytest.mark.parametrize("kind", ["across uniforms", "across keys", "across positions"])
def test_draws_are_uniform_and_uncorrelated(kind: str) -> None:
    count = 40_000
    if kind == "across keys":
        u = uniform(KeyedRng(0, torch.arange(count)), (count, 1)).flatten()
    elif kind == "across positions":
        u = uniform(KeyedRng(0, torch.tensor([5])), (1, count)).flatten()
    else:
        rng = KeyedRng(0, torch.arange(20))
        u = torch.cat([uniform(rng, (20, 1)).flatten() for _ in range(count // 20)])
    assert float(u.min()) >= 0 and float(u.max()) < 1
    # Kolmogorov-Smirnov: sqrt(n) D is above 2.2 once in 8 000 times.
    steps = (torch.arange(count) + 0.5) / count
    assert float((u.sort().values - steps).abs().max()) * math.sqrt(count) < 2.2
    # Chi-square of 256 cells, and of 16 x 16 cells of successive pairs: mean 255, standard deviation 22.6.
    cells = (u * 256).long().bincount(minlength=256)
    pairs = ((u[:-1] * 16).long() * 16 + (u[1:] * 16).long()).bincount(minlength=256)
    low = ((u * 2**40).long() & 255).bincount(minlength=256)
    for counts in (cells, pairs, low):
        expected = counts.sum() / 256
        assert 255 - 5 * 22.6 < float(((counts - expected) ** 2 / expected).sum()) < 255 + 5 * 22.6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_shapes(num_keys: int, rows: int, columns: int) -> None:
    rng = KeyedRng(0, torch.arange(num_keys))
    assert uniform(rng, (num_keys, rows, columns)).shape == (num_keys, rows, columns)
    with pytest.raises(ValueError, match=rf"number of keys, {num_keys}"):
        rng.uniform((num_keys + 1, rows))


def test_a_generator_serves_too() -> None:
    first, again = (uniform(torch.Generator().manual_seed(4), (3, 5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    generator = torch.Generator()
    assert split(generator, 3) is generator


def test_normals_have_their_moments() -> None:
    z = normal(KeyedRng(1, torch.arange(100)), (100, 400))
    assert bool(z.isfinite().all())
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(spread / z.numel())

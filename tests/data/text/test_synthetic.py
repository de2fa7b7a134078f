"""Sources whose law is known, against enumeration of every sequence."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.text.synthetic import (
    CodewordMixture,
    CorrelatedBits,
    MarkovChain,
    Source,
    pair_frequencies,
)

SOURCES = {
    "chain": MarkovChain.random(3, 4, sharpness=1.5, seed=0),
    "codewords": CodewordMixture.random(3, 3, 4, noise=0.2, seed=1),
    "bits": CorrelatedBits(6, 3, 0.1),
    "pairs of bits": CorrelatedBits(6, 2, 0.2),
}


def every_sequence(source: Source) -> torch.Tensor:
    """All S^D sequences in lexicographic order."""
    states = torch.arange(source.num_states)
    return torch.cartesian_prod(*[states] * source.length)


def entropy(source: Source) -> float:
    p_N = source.log_prob(every_sequence(source)).exp()
    return float(-p_N.xlogy(p_N).sum())


@pytest.mark.parametrize("name", SOURCES)
def test_the_law_is_one_and_its_facts_follow_from_it(name: str) -> None:
    source = SOURCES[name]
    assert isinstance(source, Source)
    x_ND = every_sequence(source)
    p_N = source.log_prob(x_ND).exp()
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-12)
    facts: Any = source
    pair_PSS = facts.pair_marginals()
    for d in range(source.length - 1):
        for v in range(source.num_states):
            for w in range(source.num_states):
                here_N = (x_ND[:, d] == v) & (x_ND[:, d + 1] == w)
                assert float(pair_PSS[d, v, w]) == pytest.approx(float(p_N[here_N].sum()), abs=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_samples_follow_the_law(name: str) -> None:
    source, count = SOURCES[name], 20_000
    x_ND = source.sample(count, torch.Generator().manual_seed(0))
    assert x_ND.shape == (count, source.length)
    place_D = source.num_states ** torch.arange(source.length - 1, -1, -1)
    seen_N = (x_ND * place_D).sum(1).bincount(minlength=source.num_states**source.length)
    expected_N = source.log_prob(every_sequence(source)).exp() * count
    often_N = expected_N > 5
    chi2, degrees = float(((seen_N - expected_N) ** 2 / expected_N)[often_N].sum()), int(often_N.sum())
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)
    gap_PSS = (pair_frequencies(x_ND, source.num_states) - source.pair_marginals()).abs()
    assert float(gap_PSS.max()) < 5 * 0.5 / math.sqrt(count)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.floats(0, 4), st.integers(0, 1000))
def test_a_random_chain_begins_in_its_stationary_law(num_states: int, length: int, sharpness: float, seed: int) -> None:
    chain = MarkovChain.random(num_states, length, sharpness=sharpness, seed=seed)
    torch.testing.assert_close(chain.marginals()[-1], chain.initial_S, rtol=0, atol=1e-9)


def test_sharpness_is_what_parts_a_chain_from_independence() -> None:
    assert entropy(MarkovChain.random(5, 4, sharpness=0, seed=0)) == pytest.approx(4 * math.log(5))
    softer, sharper = (entropy(MarkovChain.random(5, 4, sharpness=s, seed=0)) for s in (1, 3))
    assert sharper < softer < 4 * math.log(5)


def test_parity_bits_have_no_correlated_pair() -> None:
    assert bool((CorrelatedBits(6, 3, 0.01).pair_marginals() == 0.25).all())
    assert entropy(CorrelatedBits(6, 3, 0.01)) < 6 * math.log(2) - 1


def test_an_impossible_sequence_has_no_likelihood() -> None:
    never = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    chain = MarkovChain(torch.tensor([0.5, 0.5], dtype=torch.float64), never, 2)
    assert chain.log_prob(torch.tensor([[0, 1], [0, 0]])).tolist() == pytest.approx([-math.inf, math.log(0.5)])


def test_impossible_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="group must be a divisor of length=6, at least 2, got 4"):
        CorrelatedBits(6, 4, 0.1)
    with pytest.raises(ValueError, match=r"error must be in \(0, 1\), got 0"):
        CorrelatedBits(6, 3, 0)
    with pytest.raises(ValueError, match=r"noise must be in \(0, 1\], got 0.0"):
        CodewordMixture.random(2, 3, 4, noise=0.0, seed=0)
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        MarkovChain.random(3, 1, sharpness=1, seed=0)
    with pytest.raises(ValueError, match="transition_SS must hold probabilities that sum to 1"):
        MarkovChain(torch.tensor([1.0, 0.0]).double(), torch.ones(2, 2).double(), 3)
    with pytest.raises(ValueError, match=r"codeword_KD holds states outside \[0, 2\)"):
        CodewordMixture(torch.tensor([[0, 2]]), torch.ones(1).double(), 2, 0.1)

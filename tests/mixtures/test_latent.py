import math

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.latent import latent_features, sample_latents, sinusoid
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.processes.rng import KeyedRng

B, L = 500, 16


def draw(config: LatentConfig, num_lambdas: int = L) -> Tensor:
    rng = KeyedRng(0, torch.arange(B))
    return sample_latents(config, B, num_lambdas, lambda shape: rng.uniform(shape))


def is_uniform(u: Tensor) -> bool:
    """Kolmogorov-Smirnov at once in 8 000 times."""
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    return float((u.sort().values - steps).abs().max()) * math.sqrt(len(u)) < 2.2


def test_uniform() -> None:
    lam = draw(LatentConfig(law="uniform"))
    assert lam.shape == (B, L, 1) and lam.dtype == torch.float32
    assert is_uniform(lam.flatten())
    correlation = torch.corrcoef(lam[..., 0].T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(B)


def test_stratified_draws_fall_one_a_stratum() -> None:
    lam = draw(LatentConfig(law="stratified"))
    assert torch.equal((lam[..., 0].double() * L).floor().long(), torch.arange(L).expand(B, L))
    assert is_uniform((lam[..., 0].double() * L).frac().flatten())
    # The mean of L stratified draws varies by 1 / (12 L^3), that of independent ones by 1 / (12 L).
    assert float(lam.mean(1).var()) == pytest.approx(1 / (12 * L**3), rel=0.35)


@pytest.mark.parametrize("dim", [1, 3])
def test_gaussian_moments(dim: int) -> None:
    lam = draw(LatentConfig(law="gaussian", dim=dim))
    assert lam.shape == (B, L, dim)
    flat = lam.flatten(0, 1)
    assert flat.mean(0).abs().max() < 5 / math.sqrt(len(flat))
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(dim)).abs().max() < 5 * math.sqrt(2 / len(flat))


def test_a_codebook_is_enumerated_or_sampled_evenly() -> None:
    config = LatentConfig(law="codebook", codebook_size=L)
    assert torch.equal(draw(config)[..., 0], torch.arange(L).expand(B, L))
    codes = draw(config, num_lambdas=5)
    assert codes.shape == (B, 5, 1)
    counts = codes.flatten().bincount(minlength=L)
    expected = B * 5 / L
    assert float(((counts - expected) ** 2 / expected).sum()) < 50  # 15 degrees of freedom


def test_more_draws_than_codes_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_lambdas=5 exceeds lambda.codebook_size=4"):
        draw(LatentConfig(law="codebook", codebook_size=4), num_lambdas=5)
    with pytest.raises(ValueError, match="num_lambdas must be at least 1, got 0"):
        draw(LatentConfig(law="uniform"), num_lambdas=0)


def test_no_number_of_draws_asks_for_every_code() -> None:
    for path in ("adaln", "head"):
        codes = draw(LatentConfig(law="codebook", path=path, codebook_size=4), num_lambdas=0)
        assert torch.equal(codes, torch.arange(4).view(1, 4, 1).expand(len(codes), -1, -1))
    drawn = draw(LatentConfig(law="codebook", path="head", codebook_size=4), num_lambdas=4)
    assert drawn.dtype == torch.float64 and drawn.shape[1:] == (4, 1)


def test_sinusoid() -> None:
    """sin first, and frequencies 10000^(-k / (half - 1)): from 1 down to 1e-4."""
    found = sinusoid(torch.tensor([0.7]), dim=8)[0]
    frequencies = [10_000 ** (-k / 3) for k in range(4)]
    expected = [math.sin(0.7 * f) for f in frequencies] + [math.cos(0.7 * f) for f in frequencies]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_gaussian_lambda_is_read_as_it_is() -> None:
    lam = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latent_features(LatentConfig(law="gaussian", dim=3), lam), lam)
    assert torch.equal(latent_features(LatentConfig(), lam[:, :1]), sinusoid(1000 * lam[:, 0]))

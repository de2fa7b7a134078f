"""Evaluations of a student whose λ is a string of codes: they agree with its samples and with each other."""

import pytest
import torch

from di4c_lm.measure.text.likelihood import last_words, marginal_bound, step_bound
from di4c_lm.measure.text.mixture import latent_modes, total_correlation
from tests.measure.models import CODES, every_text, text_model

TEXTS = every_text()
WINDOWS = [0, 1, 2, "classes"]


@pytest.mark.parametrize("window", WINDOWS)
def test_samples_of_one_step_follow_the_likelihood(window: int | str) -> None:
    model = text_model(codes=CODES, window=window, scale=0.6, seed=8 if window == "classes" else 3)
    law_N = (-step_bound(model, TEXTS, steps=1, draws=1, lambdas=1, seed=0)).exp()
    assert float(law_N.sum()) == pytest.approx(1, abs=1e-4)
    law_ND = law_N.view(4, 4, 4)
    product_N = torch.einsum("i,j,k->ijk", law_ND.sum((1, 2)), law_ND.sum((0, 2)), law_ND.sum((0, 1))).flatten()
    assert float((law_N - product_N).abs().sum()) > 0.02
    modes = latent_modes(model, lambdas=8, batch_size=4000)
    for mode, expected_law_N in (("λ resampled", law_N), ("λ averaged", product_N)):
        drawn_ND, nfe = modes[mode](8000, 1, 0)
        number_N = (drawn_ND * torch.tensor([16, 4, 1])).sum(1)
        expected_N = expected_law_N * 8000
        often_N = expected_N > 5
        chi2 = float(((torch.bincount(number_N, minlength=64) - expected_N) ** 2 / expected_N)[often_N].sum())
        degrees = int(often_N.sum())
        assert chi2 < degrees + 4 * (2 * degrees) ** 0.5, mode
        assert nfe == (CODES if mode == "λ averaged" and window != "classes" else 1)
    own_N, text_N = total_correlation(model, TEXTS.repeat(60, 1), t=1.0, lambdas=8, seed=0, batch_size=4000)
    ratio_N = law_N.log() - product_N.log()
    assert float(own_N.mean()) == pytest.approx(float((law_N * ratio_N).sum()), abs=4 * float(own_N.std()) / 3840**0.5)
    assert torch.allclose(text_N[:64], ratio_N, atol=1e-4)


@pytest.mark.parametrize("window", [1, "classes"])
def test_one_token_at_a_time_the_marginals_count(window: int | str) -> None:
    """Where one position alone is revealed in a step, joint and product agree, so a bound of many steps nears the marginals' one."""
    model = text_model(codes=CODES, window=window)
    many = TEXTS.repeat(60, 1)
    of_marginals = marginal_bound(model, many, draws=8, lambdas=8, seed=0, batch_size=len(many))
    of_steps = step_bound(model, many, steps=256, draws=8, lambdas=8, seed=1, batch_size=len(many))
    error = float((of_marginals.var() + of_steps.var()).sqrt()) / len(many) ** 0.5
    assert float(of_steps.mean()) == pytest.approx(float(of_marginals.mean()), abs=4 * error + 0.02)


@pytest.mark.parametrize("window", [1, "classes"])
def test_last_words_weigh_the_codes(window: int | str) -> None:
    model = text_model(codes=CODES, window=window, length=6)
    assert last_words(model, ["aa ab", "ab aa ab"], lambdas=8, seed=0).shape == (2,)

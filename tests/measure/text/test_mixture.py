"""What λ carries, against enumeration: of codes for a whole text, of a code a window, and of class chains."""

import pytest
import torch

from di4c_lm.measure.text.likelihood import last_words, marginal_bound, step_bound
from di4c_lm.measure.text.mixture import latent_modes, total_correlation
from tests.measure.models import CODES, component_log_p, every_text, log_mixture, text_model


def test_total_correlation_is_the_divergence_from_the_product_of_marginals() -> None:
    model = text_model(codes=CODES)
    texts = every_text()
    log_p_LDS = component_log_p(model)
    joint = log_mixture(log_p_LDS, texts)
    marginal_1DS = log_p_LDS.logsumexp(0, keepdim=True) - torch.tensor(float(CODES)).log()
    ratio = joint - log_mixture(marginal_1DS, texts)
    expected = float((joint.exp() * ratio).sum())
    assert expected > 0.02
    own, text = total_correlation(model, texts.repeat(60, 1), t=1.0, lambdas=8, seed=0, batch_size=4000)
    assert float(own.mean()) == pytest.approx(expected, abs=4 * float(own.std()) / len(own) ** 0.5)
    assert torch.allclose(text[:64], ratio, atol=1e-4)


def test_nothing_masked_carries_nothing_and_a_product_is_refused() -> None:
    own, text = total_correlation(text_model(codes=CODES), every_text(), t=0.0, lambdas=8, seed=0)
    assert not own.any() and not text.any()
    with pytest.raises(ValueError, match="no λ"):
        total_correlation(text_model(), every_text(), t=1.0, lambdas=8, seed=0)


def test_averaged_samples_have_the_marginals_and_no_correlation() -> None:
    model = text_model(codes=CODES)
    modes = latent_modes(model, lambdas=8, batch_size=4000)
    joint = component_log_p(model)
    product = joint.logsumexp(0, keepdim=True) - torch.tensor(float(CODES)).log()
    texts = every_text()
    for mode, law in (("λ averaged", product), ("λ resampled", joint), ("λ frozen", joint)):
        drawn, nfe = modes[mode](8000, 1, 0)
        number = (drawn * torch.tensor([16, 4, 1])).sum(1)
        expected = log_mixture(law, texts).exp() * 8000
        often = expected > 5
        chi2 = float(((torch.bincount(number, minlength=64) - expected) ** 2 / expected)[often].sum())
        degrees = int(often.sum())
        assert chi2 < degrees + 4 * (2 * degrees) ** 0.5, mode
        assert nfe == (CODES if mode == "λ averaged" else 1)


def test_a_frozen_latent_differs_from_a_resampled_one_over_two_steps() -> None:
    modes = latent_modes(text_model(codes=CODES), lambdas=8, batch_size=64)
    assert not torch.equal(modes["λ frozen"](64, 3, 0)[0], modes["λ resampled"](64, 3, 0)[0])


TEXTS = every_text()
WINDOWS = [0, 1, 2, "classes"]


@pytest.mark.parametrize("window", WINDOWS)
def test_samples_of_one_step_follow_the_likelihood(window: int | str) -> None:
    model = text_model(codes=CODES, window=window, scale=0.6, seed=8 if window == "classes" else 3)
    p_N = (-step_bound(model, TEXTS, steps=1, draws=1, lambdas=1, seed=0)).exp()
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-4)
    p_ND = p_N.view(4, 4, 4)
    product_N = torch.einsum("i,j,k->ijk", p_ND.sum((1, 2)), p_ND.sum((0, 2)), p_ND.sum((0, 1))).flatten()
    assert float((p_N - product_N).abs().sum()) > 0.02
    modes = latent_modes(model, lambdas=8, batch_size=4000)
    for mode, expected_p_N in (("λ resampled", p_N), ("λ averaged", product_N)):
        sampled_ND, nfe = modes[mode](8000, 1, 0)
        number_N = (sampled_ND * torch.tensor([16, 4, 1])).sum(1)
        expected_N = expected_p_N * 8000
        often_N = expected_N > 5
        chi2 = float(((torch.bincount(number_N, minlength=64) - expected_N) ** 2 / expected_N)[often_N].sum())
        degrees = int(often_N.sum())
        assert chi2 < degrees + 4 * (2 * degrees) ** 0.5, mode
        assert nfe == (CODES if mode == "λ averaged" and window != "classes" else 1)
    own_N, text_N = total_correlation(model, TEXTS.repeat(60, 1), t=1.0, lambdas=8, seed=0, batch_size=4000)
    ratio_N = p_N.log() - product_N.log()
    assert float(own_N.mean()) == pytest.approx(float((p_N * ratio_N).sum()), abs=4 * float(own_N.std()) / 3840**0.5)
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

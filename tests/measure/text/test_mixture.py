"""What λ carries, against enumeration."""

import pytest
import torch

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

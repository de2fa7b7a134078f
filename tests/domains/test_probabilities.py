"""`logits` and `log_prob` against sums over every sequence, for each kind of model."""

import math
from typing import Any

import pytest
import torch

from di4c_lm.domains.pixels.domain import CifarModel
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.processes.gaussian import GaussianChain
from tests.measure.models import CODES, every_text, text_model

KINDS: dict[str, dict[str, Any]] = {
    "product": {},
    "components": {"codes": CODES},
    "codes": {"codes": CODES, "window": 1},
    "chain": {"codes": CODES, "window": "classes"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_every_text_sum_to_one_and_have_the_marginals_that_are_said(kind: str) -> None:
    model = text_model(**KINDS[kind])
    x_ND = every_text()
    log_p_N = model.log_prob(x_ND)
    torch.testing.assert_close(log_p_N.exp().sum().item(), 1.0, rtol=0, atol=1e-5)
    p_DS = model.logits(torch.full((1, 3), model.mask_id))[0].exp()
    by_sum = torch.stack([(log_p_N.exp()[:, None] * (x_ND == state)).sum(0) for state in range(5)], 1)
    torch.testing.assert_close(p_DS.double(), by_sum, rtol=0, atol=1e-5)
    assert bool((p_DS[:, model.mask_id] == 0).all())
    product_N = p_DS.log()[torch.arange(3), x_ND].sum(1)
    assert torch.allclose(log_p_N, product_N.double(), atol=1e-4) == (kind == "product")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_visible_is_certain_and_what_is_masked_in_x_0_is_left_out(kind: str) -> None:
    model, mask = text_model(**KINDS[kind]), 4
    x_t = torch.tensor([[2, mask, mask]])
    logits_DS = model.logits(x_t)[0]
    assert logits_DS[0].tolist() == [-math.inf, -math.inf, 0.0, -math.inf, -math.inf]
    x_ND = every_text()
    x_ND = x_ND[x_ND[:, 0] == 2]
    log_p_N = model.log_prob(x_ND, x_t.expand(len(x_ND), -1))
    torch.testing.assert_close(log_p_N.exp().sum().item(), 1.0, rtol=0, atol=1e-5)
    one = model.log_prob(torch.tensor([[2, 1, mask]]), x_t)
    torch.testing.assert_close(one.item(), logits_DS[1, 1].item(), rtol=1e-4, atol=1e-5)


def test_a_lambda_that_is_sampled_is_averaged_over_as_many_samples_as_are_asked_for() -> None:
    model = text_model()
    mixture = AdaLNSettings().fresh(type(model.denoiser), model.denoiser.config, {"num_states": 5})
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.8, generator=torch.Generator().manual_seed(0))
    model = type(model)(denoiser=mixture.eval(), tokenizer=model.tokenizer, length=3)
    few, many = (model.log_prob(every_text(), num_lambdas=count) for count in (2, 200))
    for log_p_N in (few, many):
        torch.testing.assert_close(log_p_N.exp().sum().item(), 1.0, rtol=0, atol=1e-4)
    assert not torch.allclose(few, many, atol=1e-3)
    assert torch.equal(many, model.log_prob(every_text(), num_lambdas=200))


def pixels(mixture: MixtureSettings) -> CifarModel:
    config = UnetConfig(width=8, multipliers=(1,), res_blocks=1, attention_scale=0, dropout=0.0)
    network = mixture.fresh(UNet, config, {"shape": (2, 2, 1), "num_states": 3})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    return CifarModel(denoiser=network.eval(), chain=GaussianChain(num_states=3))


def test_pixels_take_x_t_and_its_time() -> None:
    model = pixels(NoMixture())
    x_t = torch.tensor([[1, 2, 0, 1]])
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    log_p_N = model.log_prob(every, x_t.expand(81, -1), 0.5)
    torch.testing.assert_close(log_p_N.exp().sum().item(), 1.0, rtol=0, atol=1e-5)
    marginal_DS = model.logits(x_t, 0.5)[0].exp()
    torch.testing.assert_close(marginal_DS.sum(1), torch.ones(4), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="x_t must be given where the process does not mask"):
        model.log_prob(every)
    with pytest.raises(ValueError, match="t must be given where the process does not mask"):
        model.logits(x_t)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"x_t": torch.tensor([[0, 1, 5]])}, "x_t must hold states from 0 to 4"),
        ({"x_t": torch.zeros(0, 3, dtype=torch.int64)}, "x_t must hold states"),
        ({"x_t": torch.tensor([[4, 4, 4]]), "t": 0.0}, r"t must be a time in \(0, 1\]"),
        ({"x_t": torch.tensor([[4, 4, 4]]), "t": 1.5}, r"t must be a time in \(0, 1\]"),
        ({"x_t": torch.tensor([[4, 4, 4]]), "num_lambdas": 0}, "num_lambdas must be at least 1"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text_model().logits(**arguments)


def test_x_0_and_x_t_must_agree() -> None:
    with pytest.raises(ValueError, match="x_t must have the shape of x_0"):
        text_model().log_prob(torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 2), 4))
    with pytest.raises(ValueError, match="x_t must show no other states than x_0"):
        text_model().log_prob(torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4, 4]]))

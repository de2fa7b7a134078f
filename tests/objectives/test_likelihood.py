"""Fitting a mixture by the likelihood of the data."""

from typing import Any

import pytest
import torch

from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.masked import Times
from tests.objectives.helpers import (
    CLASSES,
    CODES,
    GAUSSIAN,
    MASK,
    MASKED,
    TOKEN,
    check_batch_is_mean_of_examples,
    gradients,
    pixel_batch,
    pixel_network,
    text_batch,
    text_network,
)

IDS = (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("latent", [CODES, TOKEN, CLASSES], ids=["codes", "token", "classes"])
@pytest.mark.parametrize("settings", [{}, {"times": Times()}, {"chunk_rows": 5}], ids=["default", "uniform", "chunks"])
def test_a_batch_of_text_is_the_mean_of_its_examples(latent: Any, settings: dict[str, Any]) -> None:
    of = Likelihood(num_lambdas=4, **settings).build(text_network(latent), MASKED, seed=3)
    check_batch_is_mean_of_examples(of, text_batch(*IDS), [text_batch(i) for i in IDS])


@pytest.mark.parametrize("latent", [TOKEN, CLASSES], ids=["token", "classes"])
def test_a_batch_of_images_is_the_mean_of_its_examples(latent: Any) -> None:
    of = Likelihood(num_lambdas=3, label_drop=0.5).build(pixel_network(latent), GAUSSIAN, seed=3)
    check_batch_is_mean_of_examples(of, pixel_batch(*IDS), [pixel_batch(i) for i in IDS])


def watch(network: Any) -> list[tuple[Any, ...]]:
    """The arguments of the network's calls from now on."""
    seen: list[tuple[Any, ...]] = []
    run = network.forward

    def forward(*inputs: Any) -> Any:
        seen.append(inputs)
        return run(*inputs)

    setattr(network, "forward", forward)  # noqa: B010
    return seen


def test_it_is_the_negative_log_likelihood_of_the_masked_tokens_jointly() -> None:
    of = Likelihood(num_lambdas=4).build(text_network(CODES), MASKED, seed=0)
    seen, batch = watch(of.student), text_batch(*IDS)
    loss = of(batch)[0]
    log_p_BLDS = of.student(*seen[0]).log_probs()
    expected = []
    for b, masked_D in enumerate(seen[0][0] == MASK):
        place = masked_D.nonzero()[:, 0]
        expected.append(-log_p_BLDS[b][:, place, batch.x[b, place]].sum(1).exp().mean().log())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_no_teacher_is_asked() -> None:
    teacher = text_network(None, 2)

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was called")

    setattr(teacher, "forward", refuse)  # noqa: B010
    loss, metrics = Likelihood().build(text_network(CLASSES), MASKED, seed=0, teacher=teacher)(text_batch(*IDS))
    assert bool(loss.isfinite()) and float(metrics["data_corr"]) != 0
    assert set(metrics) == {"distil", "consistency", "data_corr", "data_marginal"}
    assert all(float(metrics[name]) == 0 for name in ("distil", "consistency", "data_marginal"))


def test_most_times_are_those_of_few_steps() -> None:
    """By default a share of 0.8 lies on the grids of 1 to 16 steps."""
    network = text_network(TOKEN)
    seen = watch(network)
    Likelihood(num_lambdas=1).build(network, MASKED, seed=0)(text_batch(*range(600)))
    sixteenths = seen[0][1] * 16
    on_grid = (sixteenths - sixteenths.round()).abs() < 1e-5
    assert 0.72 < float(on_grid.double().mean()) < 0.88


def test_every_parameter_of_lambda_learns() -> None:
    of = Likelihood().build(text_network(CLASSES), MASKED, seed=0)
    found = gradients(of, text_batch(*IDS))
    for name in of.student.state_dict():
        if name.startswith("latent"):
            assert bool(found[f"student.{name}"].abs().max() > 0), name

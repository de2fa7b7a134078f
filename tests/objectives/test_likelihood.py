"""Fitting a mixture by the likelihood of the data."""

from typing import Any

import pytest
import torch

from di4c_lm.mixtures.sequential import SequentialSettings
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


@pytest.mark.parametrize(
    "latent",
    [CODES, TOKEN, CLASSES, SequentialSettings(order="random", candidates=2, freeze_backbone=False)],
    ids=["codes", "token", "classes", "sequential"],
)
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


@pytest.mark.parametrize("positions", ["masked", "revealed"])
def test_what_the_next_step_of_the_grid_reveals_is_taken_together(positions: Any) -> None:
    """Of t = (j + 1) / 4 a share of 1 / (j + 1) of what is masked, on average; or all of it."""
    network = text_network(SequentialSettings(positions=positions, freeze_backbone=False))
    seen, read = watch(network), []
    forward = network.forward

    def noted(*inputs: Any) -> Any:
        rows = forward(*inputs)
        at = type(rows).read

        def reading(self: Any, positions: Any, *more: Any, **how: Any) -> Any:
            read.append(positions)
            return at(self, positions, *more, **how)

        return type("Noted", (type(rows),), {"read": reading})(**vars(rows))

    network.forward = noted
    times = Times(grid_share=1.0, grid_steps=(4,))
    Likelihood(times=times).build(network, MASKED, seed=0)(text_batch(*range(600)))
    x_t, t_B = seen[0][:2]
    masked_B = (x_t == MASK).sum(1).double()
    read_B = torch.bincount(read[0].example, minlength=len(x_t)).double()
    for step in range(1, 5):
        here = (t_B * 4).round() == step
        share = float(read_B[here].sum() / masked_B[here].sum())
        assert abs(share - (1 / step if positions == "revealed" else 1)) < 0.06, (step, share)

"""Fitting a mixture by the likelihood of the data."""

from typing import Any

import pytest
import torch

from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.categorical import kl_divergence
from di4c_lm.processes.denoiser import Positions
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

    def forward(*inputs: Any, **more: Any) -> Any:
        seen.append(inputs)
        return run(*inputs, **more)

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


@pytest.mark.parametrize(
    "latent",
    [CODES, CLASSES, SequentialSettings(freeze_backbone=False)],
    ids=["codes", "classes", "sequential"],
)
def test_marginals_are_held_to_the_teacher_s(latent: Any) -> None:
    """The loss has Σ_d KL(teacher^d ‖ marginal^d) of the masked positions beside it; a sequential head's marginals are its network's."""
    student, teacher, batch = text_network(latent), text_network(None, 2), text_batch(*IDS)
    alone, _ = Likelihood(num_lambdas=4).build(student, MASKED, seed=0, teacher=teacher)(batch)
    seen = watch(student)
    held, metrics = Likelihood(num_lambdas=4, marginal_weight=3.0).build(student, MASKED, seed=0, teacher=teacher)(
        batch
    )
    x_t, t_B = seen[0][:2]
    positions = Positions.where(x_t == MASK)
    p_MS = teacher(x_t, t_B).marginals(positions)
    said = student.network(x_t, t_B) if isinstance(latent, SequentialSettings) else student.forward(*seen[0])
    q_MS = said.marginals(positions)
    divergence = positions.per_example(kl_divergence(p_MS, q_MS.clamp(min=1e-300).log())).mean()
    torch.testing.assert_close(metrics["data_marginal"], divergence, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(held, alone + 3 * divergence, atol=1e-6, rtol=1e-6)


def test_the_network_is_pulled_to_the_teacher() -> None:
    """With a large weight the gradient of the network's parameters is that of the divergence, which is 0 where the two are one."""
    batch, teacher = text_batch(*IDS), text_network(None, 2)
    away, same = text_network(CLASSES), text_network(CLASSES)
    same.load({**same.tensors(), **teacher.tensors()})
    found = []
    for student in (away, same):
        built = [
            Likelihood(marginal_weight=weight).build(student, MASKED, seed=0, teacher=teacher) for weight in (0.0, 1e3)
        ]
        free, held = (gradients(of, batch) for of in built)
        name = next(name for name in free if name.startswith("student.network"))
        found.append(float((held[name] - free[name]).norm()) / 1e3)
    assert found[1] < 0.2 * found[0]


def test_a_weight_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="marginal_weight must be 0 where init=scratch, which has no teacher, got 0.5"):
        Likelihood(init="scratch", marginal_weight=0.5)
    assert Likelihood(init="scratch").needs_teacher is False and Likelihood().needs_teacher is True
    assert Likelihood(marginal_weight=0.5).num_distributions == 1


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

    def noted(*inputs: Any, **more: Any) -> Any:
        rows = forward(*inputs, **more)
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

"""The causal layers behind a U-Net: against sums over all images of four pixels, and a head that is run anew for each pixel."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.sequential import SequentialRows, SequentialSettings, squares
from di4c_lm.networks.logistic_head import AddedLogits, LogisticHead
from di4c_lm.processes.denoiser import OutputHead, Positions, sample_along
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed
from tests.mixtures.helpers import check_same, gradients, on_unet, sampled
from tests.networks.helpers import LEVELS, half, images, unet

SMALL, COLOURED = (2, 2, 1), (2, 4, 2)
KINDS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "context": 0},
    {"order": "random", "context": 1},
    {"candidates": 2},
]


def chosen(**settings: Any) -> SequentialSettings:
    return SequentialSettings(**{"freeze_backbone": False, **settings})


def predicted(mixture: Any, x_t: Tensor) -> SequentialRows:
    found = mixture(x_t, half(len(x_t)), sampled(mixture, len(x_t), 1))
    assert isinstance(found, SequentialRows)
    return found


def everywhere(x: Tensor) -> Positions:
    return Positions.where(torch.ones_like(x, dtype=torch.bool))


def test_a_fresh_student_is_its_teacher() -> None:
    teacher, x_t = unet(), images(3)
    student = SequentialSettings(layers=2).over(teacher, torch.Generator().manual_seed(0)).eval()
    positions, targets = everywhere(x_t), x_t.flatten()[:, None]
    found, expected = (one.read(positions, targets) for one in (predicted(student, x_t), teacher(x_t, half(3))))
    torch.testing.assert_close(found.joint, expected.joint)
    torch.testing.assert_close(found.product, expected.product)


@pytest.mark.parametrize("settings", KINDS)
def test_all_images_have_probability_one_together(settings: dict[str, Any]) -> None:
    mixture, x_t = on_unet(chosen(**settings), SMALL, levels=3), images(1, SMALL) % 3
    every_DT = torch.tensor(list(itertools.product(range(3), repeat=4))).T
    with torch.no_grad():
        reading = predicted(mixture, x_t).read(everywhere(x_t), every_DT)
    torch.testing.assert_close(reading.joint.exp().sum(), torch.ones((), dtype=torch.float64))
    assert float((reading.joint - reading.product).abs().max()) > 1e-2


@pytest.mark.parametrize("settings", KINDS)
def test_what_is_sampled_one_by_one_is_what_is_read_at_once(settings: dict[str, Any]) -> None:
    mixture, x_t, x_0 = on_unet(chosen(**settings), COLOURED), images(2, COLOURED), images(4, COLOURED)[2:]
    rows, found = predicted(mixture, x_t), torch.zeros(2, dtype=torch.float64)

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        found[at[0]] += logits_NS.log_softmax(1).gather(1, x_0[at][:, None])[:, 0]
        return x_0[at]

    sample_along(rows.walk(torch.ones_like(x_t, dtype=torch.bool), 4), choose)
    torch.testing.assert_close(found, rows.read(everywhere(x_t), x_0.flatten()[:, None]).joint[:, 0].detach())


def plain_log_p(mixture: Any, rows: SequentialRows, x_t: Tensor, x_0: Tensor) -> Tensor:
    """log p(x_0) of one image from the definitions: row by row, a pixel's colours together, each given the levels before it."""
    head, (num_rows, num_columns, num_colours) = mixture.latent_head, COLOURED
    number = {}
    for where in itertools.product(range(num_colours), range(num_rows), range(num_columns)):
        number[where] = len(number)
    places = [(c, r, q) for r, q, c in itertools.product(range(num_rows), range(num_columns), range(num_colours))]
    known: dict[tuple[int, int, int], int] = {}
    total, lasts, nears, steps = torch.zeros((), dtype=torch.float64), [LEVELS], [], [0]
    reach = range(-1, 2)
    for i, (c, r, q) in enumerate(places):
        beside = [(k, r + dr, q + dq) for k, dr, dq in itertools.product(range(num_colours), reach, reach)]
        nears.append(
            [
                known.get(one, LEVELS + 1 + int(x_t[0, number[one]])) if one in number else LEVELS  # LEVELS: no pixel
                for one in beside
            ]
        )
        if i:
            steps.append(max(-8, min(8, number[places[i]] - number[places[i - 1]])))
        at = torch.tensor([[number[one] for one in places[: i + 1]]])
        asked = torch.tensor([steps]) + 8, torch.tensor([lasts]), torch.tensor([nears])
        change_S = head(rows.context[0, at], at, *asked)[0, -1, 2:]
        d = number[c, r, q]
        logits_S = LogisticHead(LEVELS).logits(rows.features[0, :, d, :2], at[0, :1])[0] + (change_S if i else 0)
        total = total + logits_S.log_softmax(0)[x_0[0, d]]
        known[c, r, q] = int(x_0[0, d])
        lasts.append(int(x_0[0, d]))
    return total


def test_the_likelihood_and_its_gradient_are_the_definition_s() -> None:
    x_t, x_0, found = images(2, COLOURED)[1:], images(2, COLOURED)[:1], []
    for way in ("plain", "whole", "chunks"):
        mixture = on_unet(chosen(context=1), COLOURED)
        rows = predicted(mixture, x_t)
        if way == "plain":
            log_p = plain_log_p(mixture, rows, x_t, x_0)
        else:
            chunk_rows = 3 if way == "chunks" else 0
            log_p = rows.read(everywhere(x_t), x_0.flatten()[:, None], chunk_rows=chunk_rows).joint[0, 0]
        log_p.backward()
        found.append((log_p.detach(), gradients(mixture)))
    check_same(*found)
    assert all(
        grad is not None and float(grad.abs().max()) > 0
        for name, grad in found[0][1].items()
        if "norm" not in name.lower()
    )


def test_weights_may_be_narrow() -> None:
    x_t, x_0, found = images(2, COLOURED)[1:], images(2, COLOURED)[:1], []
    for dtype in (torch.float32, torch.bfloat16):
        rows = predicted(on_unet(chosen(), COLOURED).to(dtype), x_t)
        joint = rows.read(everywhere(x_t), x_0.flatten()[:, None]).joint
        joint.sum().backward()
        sample_along(rows.walk(torch.ones_like(x_t, dtype=torch.bool), 4), lambda at, _: x_0[at])
        found.append(joint.detach())
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0)


def test_what_lies_around_a_pixel() -> None:
    """In all colours; the number of positions where there is none."""
    found, size = squares((3, 2, 2), 1, torch.device("cpu")), 12
    assert found.shape == (size, 2 * 9)
    corner = [size, size, size, size, 0, 1, size, 2, 3]
    assert found[0].tolist() == [*corner, *(n if n == size else n + 6 for n in corner)]
    assert torch.equal(found[0], found[6]), "the other colour of the same pixel has the same around it"


def test_logits_are_added_and_their_gradient_goes_through() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 2 + LEVELS, generator=generator, dtype=torch.float64)
    grad, positions = torch.randn(5, LEVELS, generator=generator, dtype=torch.float64), torch.arange(5)
    head = AddedLogits(LogisticHead(LEVELS))
    torch.testing.assert_close(
        head.logits(features, positions) - LogisticHead(LEVELS).logits(features[:, :2], positions), features[:, 2:]
    )
    expected = OutputHead.vjp(head, features, positions, grad.clone(), ())
    torch.testing.assert_close(head.vjp(features, positions, grad.clone(), ()), expected)


@pytest.mark.parametrize("sampler", ["ancestral", "analytic", "tau_leaping", "predictor_corrector"])
def test_a_sample_depends_on_its_number_alone(sampler: str) -> None:
    mixture, chain = on_unet(chosen(), SMALL), GaussianChain(num_states=LEVELS)
    found = [
        sample_keyed(mixture, chain, (5, 4), uniform_grid(2, floor=0.01), seed=1, sampler=sampler, batch_size=size).x
        for size in (1, 2, 5)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(found[0].unique(dim=0)) > 1


def test_a_frozen_network_records_no_gradient() -> None:
    student, x_t = SequentialSettings().over(unet(), torch.Generator().manual_seed(0)), images(3)
    rows = predicted(student, x_t)
    assert not rows.features.requires_grad and not rows.context.requires_grad
    rows.read(everywhere(x_t), x_t.flatten()[:, None]).joint.sum().backward()
    assert student.latent_head.out.weight.grad is not None


def test_no_step_reveals_a_pixel() -> None:
    message = r"mixture\.positions must be masked for a U-Net: no step reveals a pixel, got 'revealed'"
    with pytest.raises(ValueError, match=message):
        SequentialSettings(positions="revealed").over(unet(), torch.Generator().manual_seed(0))

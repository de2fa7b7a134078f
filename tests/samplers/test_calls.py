"""Calls of a network: reused where nothing changed, guided by a condition."""

import pytest
import torch

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.calls import Calls
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample

EVERYONE = torch.arange(4)
NOON = torch.full((4,), 0.5, dtype=torch.float64)


def test_what_has_not_changed_is_not_run_again(joint, correlated) -> None:
    net = joint(correlated, timeless=True)
    calls = Calls(net)
    x = torch.tensor([[3, 3, 3], [0, 3, 3], [1, 3, 3], [2, 3, 3]])
    first = calls(x, NOON, None, EVERYONE).conditional.features
    again = calls(x, NOON / 2, None, EVERYONE).conditional.features
    assert torch.equal(first, again)
    assert calls.made == sum(net.calls) == 4
    x[2, 1] = 0
    changed = calls(x, NOON, None, EVERYONE).conditional.features
    assert torch.equal(changed, joint(correlated)(x, NOON.float()).features)
    assert calls.made == sum(net.calls) == 5


def test_equal_sequences_share_a_run_and_are_counted_all(joint, correlated) -> None:
    net = joint(correlated, timeless=True)
    calls = Calls(net)
    features = calls(torch.full((4, 3), 3), NOON, None, EVERYONE).conditional.features
    assert net.calls == [1]
    assert calls.made == 4
    assert torch.equal(features, joint(correlated)(torch.full((4, 3), 3), NOON.float()).features)


@pytest.mark.parametrize("lambdas, timeless", [(0, False), (3, True), (3, False)])
def test_a_network_with_lambda_or_time_is_always_run(joint, correlated, lambdas, timeless) -> None:
    net = joint(correlated, lambdas=lambdas, timeless=timeless)
    calls = Calls(net)
    lam = torch.zeros(4, 1, 1, dtype=torch.int64) if lambdas else None
    for _ in range(2):
        calls(torch.full((4, 3), 3), NOON, lam, EVERYONE)
    assert calls.made == sum(net.calls) == 8


def test_the_cache_leaves_the_samples_as_they_are(joint, correlated) -> None:
    drawn = [
        sample(
            joint(correlated, timeless=timeless),
            MaskedProcess(3),
            torch.full((50, 3), 3),
            uniform_grid(6),
            KeyedRng(0, torch.arange(50)),
            sampler=Confidence(),
        )
        for timeless in (False, True)
    ]
    assert torch.equal(drawn[0].x, drawn[1].x)


def test_guidance_extrapolates_and_counts_twice(joint, independent) -> None:
    """The condition c adds c to the logit of state 0; guided by w it adds (1 + w) c."""
    cond = torch.full((4000,), 0.5)
    net = joint(independent)
    drawn = sample(
        net,
        MaskedProcess(3),
        torch.full((4000, 3), 3),
        uniform_grid(1),
        KeyedRng(0, torch.arange(4000)),
        sampler=Confidence(guidance=2.0),
        cond=cond,
    )
    weight = torch.tensor([0.6 * torch.e**1.5, 0.3, 0.1])
    assert abs(float((drawn.x[:, 0] == 0).double().mean()) - float(weight[0] / weight.sum())) < 0.03
    assert drawn.nfe == 2 == sum(net.calls) / 4000


def test_guidance_without_a_condition_is_refused(joint, independent) -> None:
    with pytest.raises(ValueError, match="guidance=2.0 needs a condition"):
        sample(
            joint(independent),
            MaskedProcess(3),
            torch.full((2, 3), 3),
            uniform_grid(2),
            torch.Generator(),
            sampler=Confidence(guidance=2.0),
        )

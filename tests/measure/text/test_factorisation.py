"""The factorisation error against enumeration, and what it is 0 for."""

import itertools

import pytest
import torch

from di4c_lm.data.text.lists import ListOperations, bound
from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.measure.text.factorisation import factorisation_error
from di4c_lm.networks.dit import DitConfig
from di4c_lm.networks.exact import ExactDenoiser, Known, Posterior
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.ablate.run import ExactModel

SOURCE = MarkovChain.random(3, 3, sharpness=2.5, seed=0)
TINY = DitConfig(hidden_size=32, num_blocks=1, num_heads=1, cond_dim=8)
HOW = {"draws": 4, "lambdas": 4, "seed": 0}


def exact_model(source: Known, given: int = 0) -> ExactModel:
    return ExactModel(denoiser=ExactDenoiser(TINY, posterior=Posterior(source)).eval(), given=given)


def divergence(steps: int) -> float:
    """Σ over reveal orders of their probability, and over x: KL(p ‖ q(· | R)), by enumeration."""
    x_SD = torch.cartesian_prod(*[torch.arange(3)] * 3)
    log_p_S, total = SOURCE.log_prob(x_SD), 0.0
    schedule = MaskedProcess(3).schedule
    times = torch.arange(steps + 1).double() / steps
    stay = schedule.mask_prob(times) / schedule.mask_prob(times[-1:])
    stay[0] = 0
    share_K = stay.diff()  # of the step (k + 1)/K -> k/K
    for when in itertools.product(range(steps), repeat=3):
        x_t, log_q_S = torch.full_like(x_SD, 3), torch.zeros(len(x_SD)).double()
        for step in reversed(range(steps)):
            p_SDV = SOURCE.marginals_given(x_t)
            for place in [place for place in range(3) if when[place] == step]:
                log_q_S += p_SDV[torch.arange(len(x_SD)), place, x_SD[:, place]].log()
            for place in [place for place in range(3) if when[place] == step]:
                x_t[:, place] = x_SD[:, place]
        weight = float(torch.stack([share_K[step] for step in when]).prod())
        total += weight * float((log_p_S.exp() * (log_p_S - log_q_S)).sum())
    return total


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_is_the_divergence_of_enumeration(steps: int) -> None:
    x_ND = SOURCE.sample(1500, torch.Generator().manual_seed(0))
    nats_N = factorisation_error(exact_model(SOURCE), SOURCE, x_ND, steps=steps, **HOW)  # pyright: ignore[reportArgumentType]
    error = float(nats_N.std()) / len(nats_N) ** 0.5
    assert float(nats_N.mean()) == pytest.approx(divergence(steps), abs=4 * error)
    assert error < 0.05 and divergence(steps) > 3 * error


def test_from_left_to_right_it_is_that_of_two_spans() -> None:
    """Of three positions the first two together, then the last, which loses nothing: what is lost is their dependence."""
    x_ND = SOURCE.sample(1500, torch.Generator().manual_seed(0))
    model = exact_model(SOURCE)
    nats_N = factorisation_error(model, SOURCE, x_ND, steps=2, left_to_right=True, **HOW)  # pyright: ignore[reportArgumentType]
    pair_SS = SOURCE.pair_marginals()[0]
    lost = float((pair_SS * (pair_SS / (pair_SS.sum(1, keepdim=True) * pair_SS.sum(0))).log()).sum())
    assert float(nats_N.mean()) == pytest.approx(lost, abs=4 * float(nats_N.std()) / len(nats_N) ** 0.5)
    one_each_N = factorisation_error(model, SOURCE, x_ND[:50], steps=3, left_to_right=True, **HOW)  # pyright: ignore[reportArgumentType]
    assert float(one_each_N.abs().max()) < 1e-5


def test_one_position_at_a_time_loses_nothing() -> None:
    """At so many steps no two positions share one, and each revealed alone is from the exact distribution."""
    x_ND = SOURCE.sample(500, torch.Generator().manual_seed(0))
    nats_N = factorisation_error(exact_model(SOURCE), SOURCE, x_ND, steps=10**5, **HOW)  # pyright: ignore[reportArgumentType]
    assert float(nats_N.abs().max()) < 1e-2


def test_of_a_list_it_is_the_bound_in_one_call() -> None:
    lists = ListOperations(("shuffle",), items=4, list_length=4)
    x_ND = lists.sample(8, torch.Generator().manual_seed(0))
    nats_N = factorisation_error(exact_model(lists, lists.prompt), lists, x_ND, steps=1, **HOW)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(
        nats_N, torch.full((8,), bound("shuffle", 4).total_correlation).double(), rtol=0, atol=1e-5
    )

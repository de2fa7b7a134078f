"""Samplers of the chain against exact laws on two positions of a few levels, by products of matrices."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from di4c_lm.processes.denoiser import OutputHead, Prediction
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.ctmc import Analytic, ChainStep, PredictorCorrector, TauLeaping, chain_grid, sample_chain

S, D, COUNT = 3, 2, 40_000
CHAIN = GaussianChain(num_states=S, rate_sigma=2.0, q_sigma=3.0, time_base=0.1, time_exponential=20.0)
DATA = torch.tensor([[0.30, 0.02, 0.03], [0.05, 0.25, 0.05], [0.0, 0.05, 0.25]], dtype=torch.float64)


@dataclass(frozen=True)
class Given(OutputHead):
    """Features are the logits."""

    num_states: int = S
    parameters: tuple[Tensor, ...] = ()

    def logits(self, features_NH: Tensor, positions_N: Tensor) -> Tensor:
        return features_NH.clone()

    def vjp(self, features_NH, positions_N, grad_NS, parameter_grads) -> Tensor:
        return grad_NS


class Exact:
    """The true marginals p(x_0^d | x_t) of the law `DATA` on both positions; with λ the exact joint, position by position."""

    def __init__(self, *, mixture: bool = False) -> None:
        self.mixture = mixture
        self.calls = 0

    def joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        q_BSS = CHAIN.transition(t.double())
        rows = torch.arange(len(x_t))
        weight = DATA * q_BSS[rows, :, x_t[:, 0]][:, :, None] * q_BSS[rows, :, x_t[:, 1]][:, None]
        return weight / weight.sum((1, 2), keepdim=True)

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        self.calls += len(x_t)
        joint_BSS = self.joint(x_t, t)
        if lam is None:
            law_BDS = torch.stack([joint_BSS.sum(2), joint_BSS.sum(1)], 1)
        else:  # λ chooses the pair: the component is a point
            pair_B = torch.searchsorted(joint_BSS.flatten(1).cumsum(1), lam[:, 0].double()).clamp_max(S * S - 1)[:, 0]
            law_BDS = torch.eye(S).double()[torch.stack([pair_B // S, pair_B % S], 1)]
        return Prediction((law_BDS + 1e-300).log()[:, None], Given())

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Callable[[tuple[int, ...]], Tensor]):
        return uniform((num_batch, num_lambdas, 1)) if self.mixture else None

    def output_head(self) -> OutputHead:
        return Given()


def empirical(step: ChainStep | None, times: Tensor, *, count: int = COUNT, **options) -> Tensor:
    drawn = sample_chain(
        Exact(mixture=options.pop("mixture", False)),
        CHAIN,
        (count, D),
        times,
        KeyedRng(7, torch.arange(count)),
        step=step,
        **{"end": "draw", **options},
    )
    return torch.bincount(drawn.x[:, 0] * S + drawn.x[:, 1], minlength=S * S).double().view(S, S) / count


def exact_law(times: Tensor, *, mixture: bool) -> Tensor:
    """The law that the analytic sampler should have, over all pairs, by products of S² x S² matrices."""
    pairs = torch.cartesian_prod(torch.arange(S), torch.arange(S))
    pi = CHAIN.stationary()
    law_P = (pi[:, None] * pi).flatten()
    net = Exact()
    for index, t in enumerate(times):
        joint = net.joint(pairs, t.expand(len(pairs)))
        if not mixture:
            joint = joint.sum(2)[:, :, None] * joint.sum(1)[:, None]
        joint_PQ = joint.flatten(1)
        if index + 1 < len(times):
            bridges = []
            for d in range(D):
                eye = torch.eye(S).double()
                given = [
                    CHAIN.posterior(pairs[:, d], eye[v].expand(len(pairs), -1), t, times[index + 1]) for v in range(S)
                ]
                bridges.append(torch.stack(given, 1))  # pair, x_0, x_s
            joint_PQ = torch.einsum("pvw,pva,pwb->pab", joint, *bridges).flatten(1)
        law_P = law_P @ joint_PQ
    return law_P.view(S, S)


def close(found: Tensor, law: Tensor) -> bool:
    """Each cell within five standard deviations."""
    return bool(((found - law).abs() <= 5 * (law * (1 - law) / COUNT).sqrt() + 1e-9).all())


@pytest.mark.parametrize("mixture", [False, True], ids=["product", "mixture"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_analytic_steps_have_the_exact_law(steps: int, mixture: bool) -> None:  # noqa: FBT001
    times = chain_grid(steps, CHAIN)
    law = exact_law(times, mixture=mixture)
    assert close(empirical(Analytic(), times, mixture=mixture), law)
    assert not close(empirical(Analytic(), times, mixture=not mixture), law) or steps == 4


def test_a_mixture_that_is_exact_gives_the_data_in_one_call_but_for_the_prior() -> None:
    """Where t = 1 is pure noise, one draw of λ is a draw of the data."""
    law = exact_law(chain_grid(1, CHAIN), mixture=True)
    torch.testing.assert_close(law, DATA / DATA.sum(), atol=0.02, rtol=0)


@pytest.mark.parametrize("step", [TauLeaping(), PredictorCorrector(corrections=2, size=0.5)], ids=["leap", "corrected"])
def test_many_steps_lead_to_the_data(step: ChainStep) -> None:
    found = empirical(step, chain_grid(64, CHAIN), count=6000)
    assert float((found - DATA / DATA.sum()).abs().sum() / 2) < 0.04


def test_corrections_mend_the_correlation_that_a_product_loses() -> None:
    """Two predictor steps are far from the data; leaps at fixed time lead back to its law there."""
    times = chain_grid(3, CHAIN)
    far = (empirical(Analytic(), times) - DATA / DATA.sum()).abs().sum() / 2
    mended = PredictorCorrector(corrections=24, size=0.05)
    near = (empirical(mended, times, count=6000) - DATA / DATA.sum()).abs().sum() / 2
    assert float(near) < 0.6 * float(far)


@pytest.mark.parametrize(
    "step, nfe",
    [
        (Analytic(), 4),
        (TauLeaping(), 4),
        (PredictorCorrector(corrections=2), 10),
        (PredictorCorrector(corrections=2, below=0.4), 8),
    ],
)
def test_calls_are_counted(step: ChainStep, nfe: int) -> None:
    net, seen = Exact(), []
    rng = KeyedRng(0, torch.arange(5))
    drawn = sample_chain(net, CHAIN, (5, D), chain_grid(4, CHAIN), rng, step=step, on_step=seen.append)
    assert drawn.nfe == nfe == net.calls / 5
    assert len(seen) == 3
    assert 0 <= int(drawn.x.min()) <= int(drawn.x.max()) < S


def test_the_hybrid_calls_the_teacher_last() -> None:
    student, teacher = Exact(mixture=True), Exact()
    rng = KeyedRng(0, torch.arange(6))
    drawn = sample_chain(student, CHAIN, (6, D), chain_grid(10, CHAIN), rng, teacher=teacher, last=3)
    assert (student.calls, teacher.calls, drawn.nfe) == (42, 18, 10)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    for step in (Analytic(), TauLeaping(), PredictorCorrector()):
        whole, part = (
            sample_chain(Exact(), CHAIN, (len(ids), D), chain_grid(3, CHAIN), KeyedRng(1, ids), step=step).x
            for ids in (torch.arange(8), torch.arange(5, 8))
        )
        assert torch.equal(whole[5:], part)


def test_what_is_refused() -> None:
    def draw(times: Tensor, **options) -> None:
        sample_chain(Exact(), CHAIN, (2, D), times, KeyedRng(0, torch.arange(2)), **options)

    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        chain_grid(0, CHAIN)
    for times in ([0.5, 0.6], [1.0, 0.0], [], [1.5, 0.1]):
        with pytest.raises(ValueError, match=r"times must descend within \(0, 1\]"):
            draw(torch.tensor(times, dtype=torch.float64))
    with pytest.raises(ValueError, match="last=2 is impossible: allowed is 0, or with a teacher"):
        draw(chain_grid(4, CHAIN), last=2)
    for settings, message in (
        ({"corrections": -1}, "corrections must be at least 0"),
        ({"size": 0.0}, "size must be above 0"),
        ({"below": 2.0}, r"below must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictorCorrector(**settings)  # pyright: ignore[reportArgumentType]

"""λ as an object, and predictions that are read: against sums with everything materialised."""

import pytest
import torch
from torch import Tensor

from di4c_lm.losses.positions import Positions
from di4c_lm.mixtures.base import Chained, Latents
from di4c_lm.mixtures.code_chain import CodeChain
from di4c_lm.networks.output_head import LinearHead
from di4c_lm.networks.prediction import Rows

BATCH, CODES, LENGTH, WIDTH, STATES = 2, 3, 4, 5, 6


def rows() -> Rows:
    rng = torch.Generator().manual_seed(0)
    features, weight = (
        torch.randn(shape, generator=rng, dtype=torch.float64)
        for shape in ((BATCH, CODES, LENGTH, WIDTH), (STATES, WIDTH))
    )
    return Rows(features, LinearHead(weight))


def chained() -> Chained:
    score = torch.randn(BATCH, 2, CODES, CODES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score[:, 0] = score[:, 0, :1]
    made = rows()
    return Chained(made.features, made.output_head, CodeChain(score.log_softmax(3), window=2))


def log_components(prediction: Rows, positions: Positions) -> tuple[Tensor, Tensor]:
    """Every component of the mixture: its log-weight (B, Z) and log-probabilities (B, Z, D, S)."""
    log_p = prediction.log_probs()
    if not isinstance(prediction, Chained):
        return torch.full((BATCH, CODES), 1 / CODES, dtype=torch.float64).log(), log_p
    strings = torch.cartesian_prod(torch.arange(CODES), torch.arange(CODES))
    step = prediction.chain.log_step
    weight = step[:, 0, 0, strings[:, 0]] + step[:, 1, strings[:, 0], strings[:, 1]]
    return weight, torch.stack([log_p[:, z.repeat_interleave(2), torch.arange(LENGTH)] for z in strings], 1)


@pytest.mark.parametrize("make", [rows, chained])
def test_reading_equals_sums_over_every_component(make) -> None:
    prediction = make()
    rng = torch.Generator().manual_seed(2)
    positions = Positions.where(torch.rand(BATCH, LENGTH, generator=rng) < 0.7)
    count = len(positions.position)
    targets = torch.randint(STATES, (count, 2), generator=rng)
    q = torch.rand(2, count, STATES, generator=rng, dtype=torch.float64)
    q = q / q.sum(2, keepdim=True)
    found = prediction.read(positions, targets, list(q), components=True, chunk_rows=3)
    weight, log_p = log_components(prediction, positions)
    marginal = (weight[:, :, None, None] + log_p).logsumexp(1)
    torch.testing.assert_close(prediction.marginals(positions), marginal[positions.example, positions.position].exp())
    for b in range(BATCH):
        here = positions.example == b
        at, x = positions.position[here], targets[here]
        for n in range(2):
            each = log_p[b][:, at, x[:, n]].sum(1)
            torch.testing.assert_close(found.joint[b, n], (weight[b] + each).logsumexp(0))
            torch.testing.assert_close(found.product[b, n], marginal[b][at, x[:, n]].sum())
            kl = (q[n][here] * (q[n][here].log() - marginal[b][at])).sum()
            torch.testing.assert_close(found.divergence[b, n], kl)
        kl_z = (q[0][here] * (q[0][here].log() - log_p[b][:, at])).sum((1, 2))
        torch.testing.assert_close(found.component_divergence[b], (weight[b].exp() * kl_z).sum())


@pytest.mark.parametrize("make", [rows, chained])
def test_independent_positions_have_the_marginals(make) -> None:
    """Averaged over many choices of components, each position is said as the marginals say it."""
    prediction, rng = make(), torch.Generator().manual_seed(3)
    positions = Positions.where(torch.ones(BATCH, LENGTH, dtype=torch.bool))
    total = torch.stack([prediction.independent(rng).log_probs()[:, 0].exp() for _ in range(2000)]).mean(0)
    torch.testing.assert_close(total.flatten(0, 1), prediction.marginals(positions), atol=0.03, rtol=0)


def test_samples_of_codes_follow_the_chain_and_the_same_latents_the_same_codes() -> None:
    prediction = chained()
    u = torch.rand(BATCH, 4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    one, again = prediction.sample(Latents(u)), prediction.sample(Latents(u))
    assert torch.equal(one.features, again.features)
    same = (one.features[:, :, None, :, 0] == prediction.features[:, None, :, :, 0]).double()
    assert torch.equal(same[..., 0], same[..., 1]), "one code a window"
    share = same[..., ::2].mean(1).transpose(1, 2)
    torch.testing.assert_close(share, prediction.chain.log_marginal.exp(), atol=0.04, rtol=0)


def test_latents_are_indexed_by_sequences_and_taken_apart() -> None:
    lam = Latents(torch.arange(6.0).view(2, 3, 1))
    assert len(lam) == 2 and lam.num_lambdas == 3
    assert torch.equal(lam[torch.tensor([1])].value, lam.value[1:])
    assert lam.one_a_row().value.flatten().tolist() == list(range(6)) and len(lam.one_a_row()) == 6

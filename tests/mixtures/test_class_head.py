"""λ as a string of token classes: against sums over all strings, and the laws of the chain that ties them."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from di4c_lm.checkpoints.student import student_from_teacher
from di4c_lm.losses.positions import Positions
from di4c_lm.mixtures.class_chain import ClassChain, Ties
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT
from di4c_lm.networks.maskgit import MaskGit
from di4c_lm.networks.prediction import Rows
from di4c_lm.networks.unet import UNet
from tests.losses import oracle
from tests.losses.problem import FIELDS, fields_of
from tests.networks import test_maskgit, test_unet
from tests.networks.nets import LENGTH, STATES, half, net

CLASSES, MASK = 3, STATES - 1
OPEN = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def latent(**settings: object) -> LatentConfig:
    return LatentConfig(**{"law": "codebook", "path": "classes", "codebook_size": CLASSES, "relations": 2, **settings})  # pyright: ignore


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x_0 and x_t, the positions `OPEN` of it masked."""
    x_0 = torch.randint(MASK, OPEN.shape, generator=torch.Generator().manual_seed(seed))
    return x_0, torch.where(OPEN, MASK, x_0)


def head(network: nn.Module) -> ClassHead:
    found = network.latent_head
    assert isinstance(found, ClassHead)
    return found


class World(NamedTuple):
    """A network whose λ is a string of classes, sequences for it, and which of their positions it does not know."""

    network: DIT | MaskGit | UNet
    x_0: Tensor
    x_t: Tensor
    is_open: Tensor


def text_world(**settings: object) -> World:
    return World(net(latent(**settings)), *sequences(), OPEN)


def code_world(**settings: object) -> World:
    """Codes of images, read out by the tied embedding with a bias of each position."""
    network = test_maskgit.net(latent(**settings))
    x_0 = torch.randint(network.num_codes, (3, network.length), generator=torch.Generator().manual_seed(0))
    is_open = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    return World(network, x_0, torch.where(is_open, network.mask_id, x_0), is_open)


def level_world(**settings: object) -> World:
    """Levels of 2 x 2 pixels, read out by the logistic, all of them open, tied to and fro."""
    network = test_unet.fill(
        UNet(test_unet.SMALL, shape=(2, 2, 1), num_states=test_unet.STATES, latent=latent(**settings))
    )
    x_0, x_t = torch.randint(test_unet.STATES, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    return World(network, x_0, x_t, torch.ones(3, 4, dtype=torch.bool))


def every_class(network: DIT | MaskGit | UNet, x_t: Tensor) -> Rows:
    lam = network.sample_latents(len(x_t), 0, lambda shape: torch.zeros(shape, dtype=torch.float64))
    return network(x_t, half(len(x_t)), lam)


def prior(chain: ClassChain, b: int, string: tuple[int, ...]) -> Tensor:
    """p(z) of one string over the open positions of sequence b, from the factors as they are defined."""
    found = chain.first[b, string[0]]
    for i, (here, there) in enumerate(itertools.pairwise(string)):
        gate_K, relation = chain.ties.gate[b, i], chain.ties.relation
        tie = gate_K[0] + (gate_K[1:] * relation[:, here, there]).sum()
        found = found * chain.normaliser[b, i, here] * tie * chain.out[b, i, there]
    return found


def strings(b: int, is_open: Tensor = OPEN) -> list[tuple[int, ...]]:
    return list(itertools.product(range(CLASSES), repeat=int(is_open[b].sum())))


def by_enumeration(
    prediction: Rows, is_open: Tensor, positions: Positions, targets: Tensor, distributions: list[Tensor]
) -> dict[str, Tensor]:
    """Every field of `Reading` straight from the definitions."""
    chain, log_p = prediction.chain, prediction.log_probs()
    assert isinstance(chain, ClassChain)
    fields: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    for b in range(len(is_open)):
        place, here = is_open[b].nonzero()[:, 0], positions.example == b
        rank = chain.place[b][chain.is_open[b]].argsort()  # of each position in the chain
        log_prior_Z = torch.stack([prior(chain, b, z) for z in strings(b, is_open)]).log()
        log_p_ZNS = torch.stack([log_p[b, torch.tensor(z)[rank], place] for z in strings(b, is_open)])
        log_mean_NS = (log_prior_Z[:, None, None] + log_p_ZNS).logsumexp(0)
        log_x_ZT = log_p_ZNS.gather(2, targets[here].expand(len(log_p_ZNS), -1, -1)).sum(1)
        q = [q_MS[here] for q_MS in distributions]
        fields["joint"].append((log_prior_Z[:, None] + log_x_ZT).logsumexp(0))
        fields["product"].append(log_mean_NS.gather(1, targets[here]).sum(0))
        fields["divergence"].append(torch.stack([oracle.divergence(q_NS, log_mean_NS).sum() for q_NS in q]))
        fields["component_divergence"].append((log_prior_Z.exp() * oracle.divergence(q[0], log_p_ZNS).sum(1)).sum())
    return {name: torch.stack(values) for name, values in fields.items()}


@pytest.mark.parametrize("make", [text_world, code_world, level_world])
@pytest.mark.parametrize("sweeps", [1, 4])
def test_a_reading_and_its_gradients_are_sums_over_all_strings(make: Callable[..., World], sweeps: int) -> None:
    found, gradients = [], []
    for way in ("enumerated", "lean"):
        world = make(sweeps=sweeps)
        network, x_0, x_t, is_open = world
        positions, num_states = Positions.where(is_open), head(network).table.shape[0]
        possible = num_states - (0 if make is level_world else 1)  # MASK is never x_0
        rng = torch.Generator().manual_seed(5)
        weight = torch.rand(2, len(positions.position), num_states, generator=rng, dtype=torch.float64)
        weight[..., possible:] = 0
        distributions = list(weight / weight.sum(2, keepdim=True))
        samples = torch.randint(possible, (len(positions.position), 2), generator=rng)
        targets = torch.cat([positions.gather(x_0)[:, None], samples], 1)
        prediction = every_class(network, x_t)
        if way == "enumerated":
            fields = by_enumeration(prediction, is_open, positions, targets, distributions)
        else:
            fields = fields_of(prediction.read(positions, targets, distributions, components=True))
        torch.stack(
            [w * value.sum() for w, value in zip((1.0, 2.0, 3.0, 4.0), fields.values(), strict=True)]
        ).sum().backward()
        found.append(fields)
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(found[1], found[0])
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")
    assert gradients[0]["latent_head.table"].abs().max() > 0 and gradients[0]["latent_head.left.weight"].abs().max() > 0


def test_the_strings_of_a_sequence_have_probability_one() -> None:
    network, (_, x_t) = net(latent()), sequences()
    chain = every_class(network, x_t).chain
    assert isinstance(chain, ClassChain)
    for b in range(len(OPEN)):
        total = torch.stack([prior(chain, b, z) for z in strings(b)]).sum()
        torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))
    nothing_said = torch.zeros(len(OPEN), LENGTH, 2, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(chain.log_prob(nothing_said), torch.zeros(len(OPEN), 2, dtype=torch.float64))


@given(seed=st.integers(0, 1000), sharp=st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_marginals_converge_to_those_asked_for_whatever_the_ties(seed: int, sharp: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    law = (sharp * torch.randn(2, 5, 4, generator=rng, dtype=torch.float64)).softmax(2)
    gate = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64).softmax(2)
    ties = Ties(gate, (sharp * torch.randn(2, 4, 4, generator=rng, dtype=torch.float64)).exp())
    place = torch.arange(5).expand(2, -1)
    is_open = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    chain = ClassChain.fitted(law, ties, place, is_open, num_positions=5, sweeps=400)
    expected = torch.where(is_open[..., None], law, 0.25)
    torch.testing.assert_close(chain.log_marginal.exp(), expected, rtol=0, atol=1e-6)
    rough = ClassChain.fitted(law, ties, place, is_open, num_positions=5, sweeps=1)
    torch.testing.assert_close(rough.log_marginal.exp().sum(2), torch.ones(2, 5, dtype=torch.float64))


def test_the_product_of_positions_is_kept() -> None:
    """With the chain fitted, λ averaged out of each position leaves what the network says without λ."""
    network, (_, x_t) = net(latent(sweeps=400)), sequences()
    prediction, positions = every_class(network, x_t), Positions.where(OPEN)
    found = prediction.marginals(positions)
    torch.testing.assert_close(found, network(x_t, half(3)).log_probs()[:, 0][OPEN].exp().detach(), rtol=0, atol=1e-6)


def test_draws_follow_the_chain() -> None:
    network, (_, x_t) = net(latent()), sequences()
    chain = every_class(network, x_t).chain
    assert isinstance(chain, ClassChain)
    num = 40_000
    u = torch.rand(len(OPEN), num, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = chain.sample(u)
    assert bool((code[~OPEN[:, None].expand_as(code)] == 0).all())
    for b in (0, 1):
        drawn = code[b][:, OPEN[b]]
        for string in strings(b):
            share = float((drawn == torch.tensor(string)).all(1).double().mean())
            assert share == pytest.approx(prior(chain, b, string).item(), abs=5 / num**0.5)


def test_a_drawn_string_says_of_each_position_what_its_class_says() -> None:
    network, (_, x_t) = net(latent()), sequences()
    codes = every_class(network, x_t)
    lam = torch.rand(3, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = network(x_t, half(3), lam)
    assert drawn.chain is None and drawn.features.shape == (3, 4, LENGTH, codes.features.shape[3])
    choice = drawn.features[..., -CLASSES:].argmax(-1)
    assert len(choice[2].unique(dim=0)) > 1
    torch.testing.assert_close(codes.under(choice).log_probs(), drawn.log_probs())
    by_class = codes.log_probs()
    expected = by_class.gather(1, choice[..., None].expand(-1, -1, -1, STATES))
    torch.testing.assert_close(drawn.log_probs(), expected)
    torch.testing.assert_close(by_class.exp().sum(-1), torch.ones(3, CLASSES, LENGTH, dtype=torch.float64))


def test_sequences_with_nothing_open_are_left_alone() -> None:
    network = net(latent())
    x_0, _ = sequences()
    found = every_class(network, x_0)
    assert found.chain is not None
    torch.testing.assert_close(
        found.chain.log_prob(torch.zeros(3, LENGTH, 1, CLASSES).double()), torch.zeros(3, 1).double()
    )
    lam = torch.rand(3, 1, 1, dtype=torch.float64)
    assert network(x_0, half(3), lam).features.isfinite().all()


def test_rows_are_those_of_each_sequence_by_itself() -> None:
    network, (_, x_t) = net(latent()), sequences()
    chain = every_class(network, x_t).chain
    assert chain is not None
    emission = torch.randn(3, LENGTH, 2, CLASSES, dtype=torch.float64)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(chain.rows(some).log_prob(emission[some]), chain.log_prob(emission)[some])
    alone = every_class(network, x_t[1:2]).chain
    assert alone is not None
    torch.testing.assert_close(alone.log_marginal, chain.log_marginal[1:2])


def test_a_student_begins_as_its_teacher_where_gates_and_classes_say_nothing() -> None:
    teacher, (_, x_t) = net(), sequences()
    student = student_from_teacher(teacher, latent(), torch.Generator().manual_seed(0)).double().eval()
    torch.testing.assert_close(student(x_t, half(3)).log_probs(), teacher(x_t, half(3)).log_probs())
    head(student).table.data.zero_()
    expected = teacher(x_t, half(3)).log_probs()
    found = every_class(student, x_t).log_probs()[OPEN[:, None].expand(-1, CLASSES, -1)]
    torch.testing.assert_close(found, expected.expand(-1, CLASSES, -1, -1)[OPEN[:, None].expand(-1, CLASSES, -1)])


def test_the_classes_told_at_the_start_tie_the_pairs_that_they_say() -> None:
    """Two classes, of which the pairs (0, 1) and (1, 0) are frequent: with the gates open, neighbours differ in class."""
    network = net(latent(codebook_size=2, relations=1, sweeps=50))
    class_S = torch.arange(STATES) % 2
    class_S[MASK] = -1
    head(network).begin_with(class_S, torch.tensor([[-3.0, 3.0], [3.0, -3.0]]).double())
    head(network).gate.bias.data = torch.tensor([-20.0, 20.0]).double()
    head(network).gate.weight.data.zero_()
    _, x_t = sequences()
    chain = every_class(network, x_t).chain
    assert chain is not None
    u = torch.rand(3, 2000, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = chain.sample(u)[2]
    apart = (code[:, 1:] != code[:, :-1]).double().mean(0)
    one = chain.log_marginal[2, :, 1].exp().detach()
    by_chance = one[1:] * (1 - one[:-1]) + one[:-1] * (1 - one[1:])
    assert bool((apart > by_chance + 0.1).all())

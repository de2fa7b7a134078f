"""λ as classes in a chain: against sums over all z, and the distribution of the chain."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.base import Chained, Latents, Mixture
from di4c_lm.mixtures.class_chain import (
    ClassChainSettings,
    ClassHead,
    RevealedRows,
    boustrophedon,
    pieces,
    within_reach,
)
from di4c_lm.mixtures.class_outputs import EveryClass
from di4c_lm.mixtures.class_relations import ClassChain, EitherChain, PairPotentials
from di4c_lm.networks.base import Rows
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.denoiser import LinearHead, Positions, predict_at, sample_along
from tests.losses import oracle
from tests.losses.problem import FIELDS, fields_of
from tests.mixtures.helpers import check_same, enumerated, gradients, on_dit, on_maskgit, on_unet, sampled
from tests.networks.helpers import CODE_LENGTH, CODES, LENGTH, LEVELS, STATES, dit, half, images, unet

CLASSES, MASK = 3, STATES - 1
UNKNOWN = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def chosen(**settings: Any) -> ClassChainSettings:
    return ClassChainSettings(**{"codebook_size": CLASSES, "relations": 2, "freeze_backbone": False, **settings})


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x_0 and x_t, the positions `UNKNOWN` of it masked."""
    x_0 = torch.randint(MASK, UNKNOWN.shape, generator=torch.Generator().manual_seed(seed))
    return x_0, torch.where(UNKNOWN, MASK, x_0)


class World(NamedTuple):
    """A mixture by classes, sequences for it, and which of their positions it does not know."""

    mixture: Mixture
    x_0: Tensor
    x_t: Tensor
    is_unknown: Tensor


def text_world(**settings: Any) -> World:
    return World(on_dit(chosen(**settings)), *sequences(), UNKNOWN)


def uniform_world(**settings: Any) -> World:
    """Uniform noise, of which no position is known, and whose features hold what x_t says of each."""
    mixture = on_dit(chosen(**settings), process="uniform", time_conditioning=True)
    return World(mixture, *sequences(), torch.ones_like(UNKNOWN))


def code_world(**settings: Any) -> World:
    """Codes of images, by the tied embedding with a bias of each position."""
    mixture = on_maskgit(chosen(**settings))
    x_0 = torch.randint(CODES, (3, CODE_LENGTH), generator=torch.Generator().manual_seed(0))
    is_unknown = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    return World(mixture, x_0, torch.where(is_unknown, CODES, x_0), is_unknown)


def level_world(**settings: Any) -> World:
    """Levels of 2 x 2 pixels, by the logistic, all of them unknown."""
    mixture = on_unet(chosen(**settings), shape=(2, 2, 1))
    x_0, x_t = torch.randint(LEVELS, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    return World(mixture, x_0, x_t, torch.ones(3, 4, dtype=torch.bool))


def every_class(mixture: Mixture, x_t: Tensor) -> EveryClass:
    found = mixture(x_t, half(len(x_t)), enumerated(mixture, len(x_t)))
    assert isinstance(found, EveryClass)
    return found


def one_chain(every: EveryClass) -> ClassChain:
    assert isinstance(every.chain, ClassChain)
    return every.chain


def prior(chain: ClassChain, b: int, z: tuple[int, ...]) -> Tensor:
    """p(z) of one z over the open positions of sequence b, from the factors as they are defined."""
    found = chain.first[b, z[0]]
    for i, (here, there) in enumerate(itertools.pairwise(z)):
        gate_K, relation = chain.potentials.gate[b, i], chain.potentials.relation
        tie = gate_K[0] + (gate_K[1:] * relation[:, here, there]).sum()
        if chain.potentials.left is not None and chain.potentials.right is not None:
            tie = tie + (chain.potentials.left[b, i, :, here] * chain.potentials.right[b, i, :, there]).sum()
        found = found * chain.normaliser[b, i, here] * tie * chain.out[b, i, there]
    return found


def all_z(b: int, is_unknown: Tensor = UNKNOWN) -> list[tuple[int, ...]]:
    return list(itertools.product(range(CLASSES), repeat=int(is_unknown[b].sum())))


def by_enumeration(
    prediction: EveryClass, is_unknown: Tensor, positions: Positions, targets: Tensor, distributions: list[Tensor]
) -> dict[str, Tensor]:
    """Every field of `Reading` straight from the definitions."""
    chain, log_p = one_chain(prediction), prediction.log_probs()
    fields: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    for b in range(len(is_unknown)):
        place, here = is_unknown[b].nonzero()[:, 0], positions.example == b
        rank = chain.place[b][chain.is_unknown[b]].argsort()  # of each position in the chain
        log_prior_Z = torch.stack([prior(chain, b, z) for z in all_z(b, is_unknown)]).log()
        log_p_ZNS = torch.stack([log_p[b, torch.tensor(z)[rank], place] for z in all_z(b, is_unknown)])
        log_mean_NS = (log_prior_Z[:, None, None] + log_p_ZNS).logsumexp(0)
        log_x_ZT = log_p_ZNS.gather(2, targets[here].expand(len(log_p_ZNS), -1, -1)).sum(1)
        q = [q_MS[here] for q_MS in distributions]
        fields["joint"].append((log_prior_Z[:, None] + log_x_ZT).logsumexp(0))
        fields["product"].append(log_mean_NS.gather(1, targets[here]).sum(0))
        fields["divergence"].append(torch.stack([oracle.divergence(q_NS, log_mean_NS).sum() for q_NS in q]))
        fields["component_divergence"].append((log_prior_Z.exp() * oracle.divergence(q[0], log_p_ZNS).sum(1)).sum())
    return {name: torch.stack(values) for name, values in fields.items()}


@pytest.mark.parametrize(
    ("make", "given"),
    [
        *((make, {}) for make in (text_world, uniform_world, code_world, level_world)),
        (text_world, {"sinkhorn_iterations": 4}),
        (text_world, {"rank": 2}),
        (code_world, {"rank": 1, "combine": "product_of_experts"}),
    ],
)
def test_a_reading_and_its_gradients_are_sums_over_all_z(make: Callable[..., World], given: dict[str, Any]) -> None:
    found = []
    for way in ("enumerated", "lean"):
        world = make(**{"sinkhorn_iterations": 1, **given})
        network, x_0, x_t, is_unknown = world
        positions, num_states = Positions.where(is_unknown), network.latent_head.table.shape[0]
        possible = num_states - (0 if make is level_world else 1)  # MASK is never x_0
        rng = torch.Generator().manual_seed(5)
        weight = torch.rand(2, len(positions.position), num_states, generator=rng, dtype=torch.float64)
        weight[..., possible:] = 0
        distributions = list(weight / weight.sum(2, keepdim=True))
        samples = torch.randint(possible, (len(positions.position), 2), generator=rng)
        targets = torch.cat([positions.gather(x_0)[:, None], samples], 1)
        prediction = every_class(network, x_t)
        if way == "enumerated":
            fields = by_enumeration(prediction, is_unknown, positions, targets, distributions)
        else:
            fields = fields_of(prediction.read(positions, targets, distributions, components=True))
        torch.stack(
            [w * value.sum() for w, value in zip((1.0, 2.0, 3.0, 4.0), fields.values(), strict=True)]
        ).sum().backward()
        found.append((fields, gradients(network)))
    check_same(*found)
    first: Any = found[0][1]
    assert first["latent_head.table"].abs().max() > 0 and first["latent_head.left.weight"].abs().max() > 0


@pytest.mark.parametrize("given", [{}, {"rank": 2}, {"rank": 2, "combine": "product_of_experts"}])
def test_all_z_of_a_sequence_have_probability_one(given: dict[str, Any]) -> None:
    network, (_, x_t) = on_dit(chosen(**given)), sequences()
    chain = one_chain(every_class(network, x_t))
    for b in range(len(UNKNOWN)):
        total = torch.stack([prior(chain, b, z) for z in all_z(b)]).sum()
        torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))
    nothing_said = torch.zeros(len(UNKNOWN), LENGTH, 2, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(chain.log_prob(nothing_said), torch.zeros(len(UNKNOWN), 2, dtype=torch.float64))


@given(seed=st.integers(0, 1000), sharp=st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_marginals_converge_to_those_asked_for_whatever_the_potentials(seed: int, sharp: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    p = (sharp * torch.randn(2, 5, 4, generator=rng, dtype=torch.float64)).softmax(2)
    gate = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64).softmax(2)
    potentials = PairPotentials(gate, (sharp * torch.randn(2, 4, 4, generator=rng, dtype=torch.float64)).exp())
    place = torch.arange(5).expand(2, -1)
    is_unknown = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    chain = ClassChain.fitted(p, potentials, place, is_unknown, num_positions=5, iterations=400)
    expected = torch.where(is_unknown[..., None], p, 0.25)
    torch.testing.assert_close(chain.log_marginal.exp(), expected, rtol=0, atol=1e-6)
    rough = ClassChain.fitted(p, potentials, place, is_unknown, num_positions=5, iterations=1)
    torch.testing.assert_close(rough.log_marginal.exp().sum(2), torch.ones(2, 5, dtype=torch.float64))


def test_a_product_of_experts_multiplies_what_the_network_says_by_the_potentials() -> None:
    """p(x) ∝ Π_d p^d(x^d) · Σ_z Π_i c(z_i | x_i) Π_i r_i(z_i, z_{i+1}), over every text of the masked positions."""
    mixture, (_, x_t) = on_dit(chosen(combine="product_of_experts", rank=2)), sequences()
    with torch.no_grad():
        mixture.latent_head.relation.mul_(5)
        mixture.latent_head.table.mul_(5)
        every, own = every_class(mixture, x_t), mixture(x_t, half(3)).log_probs()[:, 0].exp()
    b, positions = 0, Positions.where(UNKNOWN & (torch.arange(3)[:, None] == 0))  # shorter than the longest
    texts = torch.cartesian_prod(*[torch.arange(STATES - 1)] * int(UNKNOWN[b].sum()))
    with torch.no_grad():
        joint_T = every.read(positions, texts.T).joint[0].exp()
    torch.testing.assert_close(joint_T.sum(), torch.ones((), dtype=torch.float64))
    table, potentials = every.output_head.log_class.exp(), one_chain(every).potentials
    assert potentials.left is not None and potentials.right is not None
    weight_TL = table[texts[:, 0]]
    for i in range(texts.shape[1] - 1):
        tie_LL = potentials.gate[b, i, 0] + (potentials.gate[b, i, 1:, None, None] * potentials.relation).sum(0)
        tie_LL = tie_LL + potentials.left[b, i].T @ potentials.right[b, i]
        weight_TL = weight_TL @ tie_LL * table[texts[:, i + 1]]
    expected_T = weight_TL.sum(1) * own[b, UNKNOWN[b]].gather(1, texts.T).prod(0)
    torch.testing.assert_close(joint_T, expected_T / expected_T.sum())
    marginal = every.marginals(positions)[0]
    by_sum = torch.zeros_like(marginal).index_add(0, texts[:, 0], joint_T)
    torch.testing.assert_close(marginal, by_sum)
    assert float((marginal - own[b, UNKNOWN[b]][0]).abs().sum()) > 0.01, "the marginals are not kept"


@pytest.mark.parametrize("rank", [0, 2])
def test_no_marginal_is_further_off_than_the_tolerance(rank: int) -> None:
    """Where the potentials are sharp two iterations leave much; the pairs of a sequence are held together."""
    worst = []
    for tolerance in (0.0, 0.02, 1e-4):
        mixture, (_, x_t) = on_dit(chosen(sinkhorn_tolerance=tolerance, rank=rank, sinkhorn_iterations=1)), sequences()
        mixture.latent_head.relation.data.mul_(20)
        mixture.latent_head.table.data.mul_(10)
        mixture.network.get_parameter("output_layer.linear.weight").data.mul_(3)
        found = every_class(mixture, x_t).marginals(Positions.where(UNKNOWN))
        own = mixture(x_t, half(3)).log_probs()[:, 0][UNKNOWN].exp().detach()
        worst.append(float((found - own).abs().sum(1).amax()) / 2)
    assert worst[0] > 0.03 and worst[1] <= 0.02 and worst[2] <= 1e-4, worst


def test_the_product_of_positions_is_kept() -> None:
    """With the chain fitted, λ averaged out of each position leaves what the network says without λ."""
    network, (_, x_t) = on_dit(chosen(sinkhorn_iterations=400)), sequences()
    prediction, positions = every_class(network, x_t), Positions.where(UNKNOWN)
    found = prediction.marginals(positions)
    torch.testing.assert_close(
        found, network(x_t, half(3)).log_probs()[:, 0][UNKNOWN].exp().detach(), rtol=0, atol=1e-6
    )


def plain_sinkhorn(p_NL: Tensor, tie_PLL: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Normaliser and `out` of each pair by loops: rows and columns of here(a) u(a) tie(a, b) out(b) brought to p in turn."""
    normalisers, outs = [], []
    for tie_LL, here_L, there_L in zip(tie_PLL, p_NL[:-1], p_NL[1:], strict=True):
        column_L = torch.ones_like(there_L)
        for _ in range(iterations):
            row_L = 1 / (tie_LL * (column_L * there_L)[None]).sum(1)
            column_L = 1 / (tie_LL * (row_L * here_L)[:, None]).sum(0)
        outs.append(column_L * there_L)
        normalisers.append(1 / (tie_LL * outs[-1][None]).sum(1))
    return torch.stack(normalisers), torch.stack(outs)


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_a_fit_makes_as_many_sinkhorn_iterations_as_it_says(iterations: int) -> None:
    rng = torch.Generator().manual_seed(0)
    p_NL = torch.randn(4, 3, generator=rng, dtype=torch.float64).mul(2).softmax(1)
    gate_PK = torch.randn(3, 2, generator=rng, dtype=torch.float64).softmax(1)
    relation_LL = torch.randn(3, 3, generator=rng, dtype=torch.float64).mul(2).exp()
    chain = ClassChain.fitted(
        p_NL[None],
        PairPotentials(gate_PK[None], relation_LL[None]),
        torch.arange(4)[None],
        torch.ones(1, 4, dtype=torch.bool),
        num_positions=4,
        iterations=iterations,
    )
    tie_PLL = gate_PK[:, 0, None, None] + gate_PK[:, 1, None, None] * relation_LL
    normaliser_PL, out_PL = plain_sinkhorn(p_NL, tie_PLL, iterations)
    torch.testing.assert_close(chain.normaliser[0], normaliser_PL)
    torch.testing.assert_close(chain.out[0], out_PL)


def test_gates_see_how_far_apart_two_positions_are() -> None:
    """Two unknown positions with nothing else about them: the tie is another where a known position is between them."""
    mixture = on_dit(chosen())
    head, rng = mixture.latent_head, torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.gap.weight.copy_(torch.randn(head.gap.weight.shape, generator=rng))
        head.gate.weight.copy_(torch.randn(head.gate.weight.shape, generator=rng))
        head.left.weight.zero_()
        head.right.weight.zero_()
    unknown = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    x_0 = torch.randint(MASK, unknown.shape, generator=rng)
    near, far = one_chain(every_class(mixture, torch.where(unknown, MASK, x_0))).potentials.gate[:, 0]
    assert float((near - far).abs().max().detach()) > 0.01


@pytest.mark.parametrize("given", [{}, {"rank": 3, "combine": "product_of_experts"}])
def test_samples_follow_the_chain(given: dict[str, Any]) -> None:
    network, (_, x_t) = on_dit(chosen(**given)), sequences()
    network.latent_head.relation.data.mul_(8)  # far from symmetric
    if given:
        network.latent_head.gate.bias.data[-1] = 4.0
        network.latent_head.of_left.table.data.mul_(10)
        network.latent_head.of_right.table.data.mul_(10)
    chain = one_chain(every_class(network, x_t))
    num = 40_000
    u = torch.rand(len(UNKNOWN), num, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = chain.sample(u)
    assert bool((code[~UNKNOWN[:, None].expand_as(code)] == 0).all())
    for b in (0, 1):
        sample = code[b][:, UNKNOWN[b]]
        for z in all_z(b):
            share = float((sample == torch.tensor(z)).all(1).double().mean())
            assert share == pytest.approx(prior(chain, b, z).item(), abs=5 / num**0.5)


def test_a_sample_says_of_each_position_what_its_class_says() -> None:
    network, (_, x_t) = on_dit(chosen()), sequences()
    codes = every_class(network, x_t)
    drawn = network(x_t, half(3), sampled(network, 3, 4))
    assert not isinstance(drawn, Chained) and drawn.features.shape[:3] == (3, 4, LENGTH)
    choice = drawn.features[..., -1].long()
    assert len(choice[2].unique(dim=0)) > 1
    torch.testing.assert_close(codes.under(choice).log_probs(), drawn.log_probs())
    by_class = codes.log_probs()
    expected = by_class.gather(1, choice[..., None].expand(-1, -1, -1, STATES))
    torch.testing.assert_close(drawn.log_probs(), expected)
    torch.testing.assert_close(by_class.exp().sum(-1), torch.ones(3, CLASSES, LENGTH, dtype=torch.float64))


def test_sequences_with_nothing_unknown_are_left_alone() -> None:
    network = on_dit(chosen())
    x_0, _ = sequences()
    found = every_class(network, x_0)
    torch.testing.assert_close(
        found.chain.log_prob(torch.zeros(3, LENGTH, 1, CLASSES).double()), torch.zeros(3, 1).double()
    )
    assert network(x_0, half(3), sampled(network, 3, 1)).features.isfinite().all()


def test_rows_are_those_of_each_sequence_by_itself() -> None:
    network, (_, x_t) = on_dit(chosen()), sequences()
    chain = every_class(network, x_t).chain
    emission = torch.randn(3, LENGTH, 2, CLASSES, dtype=torch.float64)
    alone = every_class(network, x_t[1:2]).chain
    torch.testing.assert_close(alone.log_prob(emission[1:2]), chain.log_prob(emission)[1:2])
    torch.testing.assert_close(alone.log_marginal, chain.log_marginal[1:2])


def test_a_student_begins_as_its_teacher_where_gates_and_classes_say_nothing() -> None:
    teacher, (_, x_t) = dit(), sequences()
    student = chosen().over(teacher, torch.Generator().manual_seed(0)).eval()
    torch.testing.assert_close(student(x_t, half(3)).log_probs(), teacher(x_t, half(3)).log_probs())
    student.latent_head.table.data.zero_()
    expected = teacher(x_t, half(3)).log_probs()
    found = every_class(student, x_t).log_probs()[UNKNOWN[:, None].expand(-1, CLASSES, -1)]
    torch.testing.assert_close(found, expected.expand(-1, CLASSES, -1, -1)[UNKNOWN[:, None].expand(-1, CLASSES, -1)])


def test_the_classes_told_at_the_start_tie_the_pairs_that_they_say() -> None:
    """Two classes, of which the pairs (0, 1) and (1, 0) are frequent: with the gates open, neighbours differ in class."""
    network = on_dit(chosen(codebook_size=2, relations=1, sinkhorn_iterations=50))
    class_S = torch.arange(STATES) % 2
    class_S[MASK] = -1
    network.latent_head.begin_with(class_S, [torch.tensor([[-3.0, 3.0], [3.0, -3.0]]).double()])
    network.latent_head.gate.bias.data = torch.tensor([-20.0, 20.0]).double()
    network.latent_head.gate.weight.data.zero_()
    _, x_t = sequences()
    chain = every_class(network, x_t).chain
    u = torch.rand(3, 2000, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = chain.sample(u)[2]
    apart = (code[:, 1:] != code[:, :-1]).double().mean(0)
    one = chain.log_marginal[2, :, 1].exp().detach()
    by_chance = one[1:] * (1 - one[:-1]) + one[:-1] * (1 - one[1:])
    assert bool((apart > by_chance + 0.1).all())


@pytest.mark.parametrize("colours", [1, 3])
def test_classes_of_levels_keep_the_distribution_of_each_pixel(colours: int) -> None:
    shape, t = (2, 4, colours), torch.tensor([0.2, 0.7])
    mixture, x_t = on_unet(chosen(codebook_size=4, sinkhorn_iterations=50), shape=shape), images(2, (2, 4, colours))
    own = mixture(x_t, t).log_probs().exp()[:, 0]
    samples = mixture(x_t, t, sampled(mixture, 2, 4000)).log_probs().exp()
    assert samples.shape == (2, 4000, 8 * colours, LEVELS) and not torch.allclose(samples[:, 0], samples[:, 1])
    torch.testing.assert_close(samples.mean(1), own, rtol=0, atol=0.04)
    torch.testing.assert_close(own, unet(shape)(x_t, t).log_probs().exp()[:, 0])


def test_the_chain_goes_in_boustrophedon_order_and_through_the_colours() -> None:
    rows, columns, _ = shape = (3, 4, 2)
    place = boustrophedon(shape)
    assert sorted(place.tolist()) == list(range(24))
    colour, pixel = place // (rows * columns), place % (rows * columns)
    row, column = pixel // columns, pixel % columns
    assert colour.tolist() == [0, 1] * 12
    steps = (row[2::2] - row[:-2:2]).abs() + (column[2::2] - column[:-2:2]).abs()
    assert bool((steps == 1).all()), "each pixel beside the one before"


def test_by_turns_the_chain_goes_along_columns_too() -> None:
    """½ rows + ½ columns: its likelihood, samples and marginals, against the sums over all z of both."""
    mixture, _, x_t, is_unknown = level_world(order="turns", sinkhorn_iterations=50)
    mixture.latent_head.relation.data.mul_(8)
    prediction = every_class(mixture, x_t)
    chain = prediction.chain
    assert isinstance(chain, EitherChain) and chain.num_windows == 5
    assert chain.chains[0].place[0].tolist() == [0, 1, 3, 2] and chain.chains[1].place[0].tolist() == [0, 2, 3, 1]
    by_z: dict[tuple[int, ...], Tensor] = {}  # p(z), z by position
    for one in chain.chains:
        rank = one.place[0].argsort()
        for z in all_z(0, is_unknown):
            at = tuple(torch.tensor(z)[rank].tolist())
            by_z[at] = by_z.get(at, torch.zeros(())) + prior(one, 0, z).detach() / 2
    u = torch.rand(3, 40_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = chain.sample(u)[0, :, :4]
    shares = [float((code == torch.tensor(z)).all(1).double().mean()) for z in by_z]
    assert shares == pytest.approx([float(p) for p in by_z.values()], abs=0.015)
    emission = torch.randn(3, 5, 1, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    places = torch.arange(4)
    of_z = torch.stack([p * emission[0, places, 0, torch.tensor(z)].sum().exp() for z, p in by_z.items()])
    torch.testing.assert_close(chain.log_prob(emission)[0, 0].exp(), of_z.sum())
    positions = Positions.where(is_unknown)
    own = mixture(x_t, half(3)).log_probs()[:, 0][is_unknown].exp()
    torch.testing.assert_close(prediction.marginals(positions), own.detach(), rtol=0, atol=1e-4)
    apart = (chain.chains[0].log_prob(emission[:, :4]) - chain.chains[1].log_prob(emission[:, :4])).abs().max()
    assert float(apart.detach()) > 0.01, "two chains that differ"
    reading = prediction.read(positions, positions.gather(torch.zeros(3, 4, dtype=torch.int64))[:, None])
    assert bool((reading.joint - reading.product).abs().max() > 1e-4)
    (-reading.joint.sum()).backward()
    assert float(mixture.latent_head.along.weight.grad.abs().min()) > 0


def test_guidance_is_under_the_classes_sampled_with_the_condition() -> None:
    mixture, labels = on_maskgit(chosen()), torch.tensor([0, 1, 2])
    x_t, lam = torch.full((3, CODE_LENGTH), CODES), sampled(mixture, 3, 1)
    conditional, free = mixture.guided(x_t, half(3), lam, labels)
    torch.testing.assert_close(conditional.log_probs(), mixture(x_t, half(3), lam, labels).log_probs())
    classes = conditional.features[..., -1].long()
    assert torch.equal(classes, free.features[..., -1].long()) and int(classes.max()) > 0
    every = mixture(x_t, half(3), enumerated(mixture, 3), None)
    torch.testing.assert_close(free.log_probs(), every.under(classes).log_probs())


def test_relations_begin_with_the_pairs_of_their_distance() -> None:
    """Of texts where each second token says the one two further on, the second relation ties what the first does not."""
    rng = torch.Generator().manual_seed(0)
    halves = torch.randint(MASK, (2, 3000), generator=rng)
    tokens = torch.stack([*halves, *halves, *halves], 1)
    begun = chosen(codebook_size=STATES, relations=2, counted="distances")
    student = begun.over(dit(), torch.Generator().manual_seed(0), sequences=lambda: tokens)
    same = student.latent_head.table[:MASK].argmax(1)
    near, far = student.latent_head.relation[:, same, same]
    assert float(far.detach().min()) > 1.5 > 0.5 > float(near.detach().abs().max())


def test_a_mixture_begins_with_the_classes_of_the_data() -> None:
    """Tokens that follow each other in a circle of three classes: each gets its class, over the teacher's own weights."""
    true_S = torch.arange(STATES) % CLASSES
    start = torch.randint(MASK, (4000, 1), generator=torch.Generator().manual_seed(0))
    rows = [start]
    for _ in range(LENGTH - 1):
        step = 3 * torch.randint(3, start.shape, generator=torch.Generator().manual_seed(len(rows))) + 1
        rows.append((rows[-1] + step) % 9)
    tokens = torch.cat([row % 9 for row in rows], 1)
    teacher = dit()
    student = chosen(freeze_backbone=True).over(teacher, torch.Generator().manual_seed(0), sequences=lambda: tokens)
    head: ClassHead = student.latent_head
    assert float(head.table[:9].softmax(1).amax(1).min()) > 0.9
    found = head.table[:9].argmax(1)
    assert all(len(set(found[true_S[:9] == c].tolist())) == 1 for c in range(CLASSES)) and len(set(found.tolist())) == 3
    again = chosen(freeze_backbone=True).over(student, torch.Generator().manual_seed(1), sequences=lambda: tokens[:1])
    assert torch.equal(again.latent_head.table, head.table), "a second round goes on with the classes of the first"


def revealed_rows(x_t: Tensor, lam: Latents | None = None, cond: Tensor | None = None) -> RevealedRows:
    """On codes of images where there are classes, else on text; the weights are those of the chain through all that is masked."""
    mixture = on_dit(chosen(positions="revealed")) if cond is None else on_maskgit(chosen(positions="revealed"))
    found = mixture(x_t, half(len(x_t)), enumerated(mixture, len(x_t)) if lam is None else lam, cond)
    assert isinstance(found, RevealedRows)
    return found


def test_through_all_that_is_masked_a_chain_of_what_is_revealed_is_the_same() -> None:
    x_0, x_t = sequences()
    positions, found = Positions.where(UNKNOWN), []
    for rows in (every_class(on_dit(chosen()), x_t), revealed_rows(x_t)):
        log_p_M = rows.output_head.logits(rows.features[positions.example, 0, positions.position], positions.position)
        q_MS = log_p_M.detach().softmax(1)
        found.append(rows.read(positions, positions.gather(x_0)[:, None], [q_MS], components=True))
    for name in FIELDS[:2]:
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name))


def test_a_chain_goes_through_what_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its strings are a distribution, its marginals the network's, and the head is not run elsewhere."""
    x_t, part = sequences()[1][:1], torch.tensor([[True, False, False, True, False, False]])
    rows, positions = revealed_rows(x_t), Positions.where(part)
    every = torch.tensor(list(itertools.product(range(MASK), repeat=2)))
    asked, logits_of = [], LinearHead.logits

    def counted(head: LinearHead, features_NH: Tensor, positions_N: Tensor) -> Tensor:
        asked.extend(positions_N.tolist())
        return logits_of(head, features_NH, positions_N)

    monkeypatch.setattr(LinearHead, "logits", counted)
    reading = rows.read(positions, every.T)
    p_T = reading.joint[0].detach().exp()
    assert set(asked) == {0, 3}
    torch.testing.assert_close(p_T.sum(), torch.ones((), dtype=torch.float64))
    own_S = rows.marginals(positions)[0, :MASK].detach()
    torch.testing.assert_close(p_T.view(MASK, MASK).sum(1), own_S, atol=1e-6, rtol=1e-4)
    assert float((reading.joint - reading.product).detach().abs().max()) > 1e-3
    among_all = every_class(on_dit(chosen()), x_t).read(positions, every.T)
    assert float((reading.joint - among_all.joint).detach().abs().max()) > 1e-3, "tied by their distance"


@torch.no_grad()
def test_a_step_samples_classes_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the chain through all that is masked, whose marginals are kept exactly; the head is run at what is needed and between alone."""
    num = 20_000
    part = torch.tensor([[True, False, False, True, False, False]])
    assert UNKNOWN[0].tolist() == [True, True, False, True, False, True], (
        "one between the two that are needed, and one behind"
    )
    x_t, where, t = sequences()[1][:1].expand(num, -1), part.expand(num, -1), half(num)

    def strongly_tied(reach: int) -> Any:
        mixture = on_dit(chosen(sinkhorn_tolerance=1e-7, reach=reach))
        mixture.latent_head.relation.copy_(3 * torch.eye(CLASSES).expand_as(mixture.latent_head.relation))
        return mixture

    every = every_class(strongly_tied(0), x_t[:1])
    (p_T,) = every.chain.log_prob(_of_both(every.chain.num_windows, (0, 3))[None]).exp()
    asked, logits_of = set[int](), LinearHead.logits

    def counted(head: LinearHead, features_NH: Tensor, positions_N: Tensor) -> Tensor:
        asked.update(positions_N.tolist())
        return logits_of(head, features_NH, positions_N)

    monkeypatch.setattr(LinearHead, "logits", counted)

    def frequencies(reach: int) -> Tensor:
        mixture = strongly_tied(reach)
        asked.clear()
        lam = mixture.sample_latents(num, 1, torch.Generator().manual_seed(0), torch.device("cpu"))
        rows: Any = predict_at(mixture, x_t, t, lam, None, where)
        code_N = (rows.features[:, 0, [0, 3], -1].long() * torch.tensor([CLASSES, 1])).sum(1)
        return torch.bincount(code_N, minlength=CLASSES**2) / num

    error = 4 / (2 * num**0.5)
    assert float((frequencies(2) - p_T).abs().max()) < error
    assert asked == {0, 1, 3}
    p_CC = p_T.view(CLASSES, CLASSES)
    product_T = (p_CC.sum(1, keepdim=True) * p_CC.sum(0)).flatten()
    assert float((frequencies(1) - product_T).abs().max()) < error < float((product_T - p_T).abs().max())
    assert asked == {0, 3}
    assert float((frequencies(0) - p_T).abs().max()) < error
    assert asked == {0, 1, 3, 5}


def _of_both(num_windows: int, at: tuple[int, int]) -> Tensor:
    """log emissions (W, T, L) that say one of the T = L² pairs of classes of two windows each."""
    log_e = torch.zeros(num_windows, CLASSES**2, CLASSES, dtype=torch.float64)
    for window, place in zip(at, (0, 1), strict=True):
        says = torch.tensor([pair[place] for pair in itertools.product(range(CLASSES), repeat=2)])
        log_e[window] = torch.where(torch.arange(CLASSES) == says[:, None], 0.0, -torch.inf)
    return log_e


def test_what_is_between_is_found_by_links() -> None:
    unknown = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 1]]).bool()
    asked = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0, 1]]).bool()
    for reach, expected in ((1, [0, 3, 8]), (2, [0, 1, 3, 8]), (3, [0, 1, 3, 8]), (4, [0, 1, 3, 5, 6, 7, 8])):
        through = within_reach(asked, unknown, reach)
        piece = pieces(through, unknown)
        assert through[0].nonzero()[:, 0].tolist() == expected
        tied = [int(piece[0, a]) == int(piece[0, b]) for a, b in itertools.pairwise(expected)]
        assert tied == [one not in {(0, 3), (3, 8)} for one in itertools.pairwise(expected)]
    assert not within_reach(torch.zeros_like(asked), unknown, 9).any()


@pytest.mark.parametrize("positions", ["masked", "revealed"])
@torch.no_grad()
def test_what_is_not_asked_for_need_not_be_known(positions: str) -> None:
    """Of a network that is told what will be read: the features elsewhere may be anything."""
    mixture, (x_0, x_t) = on_dit(chosen(positions=positions)), sequences()
    where = Positions.where(UNKNOWN & (torch.arange(LENGTH) % 2 == 1))
    target = where.gather(x_0)[:, None]
    whole = mixture(x_t, half(3), enumerated(mixture, 3))
    told = predict_at(mixture, x_t, half(3), enumerated(mixture, 3), None, where.among(LENGTH))
    torch.testing.assert_close(told.read(where, target).joint, whole.read(where, target).joint)


@torch.no_grad()
def test_what_is_revealed_is_sampled_by_its_chain() -> None:
    """With λ summed out a walk has the joint probability of what is sampled; else it goes by the classes that λ stands for."""
    x_0, x_t = sequences()
    where = UNKNOWN & torch.tensor([True, True, False, True, True, True])
    positions, rows = Positions.where(where), revealed_rows(x_t)
    log_p_B = torch.zeros(3, dtype=torch.float64)

    def choose(at: Any, logits_NS: Tensor) -> Tensor:
        log_p_B[at[0]] += logits_NS.log_softmax(1).gather(1, x_0[at][:, None])[:, 0]
        return x_0[at]

    sample_along(rows.walk(where, 4), choose)
    torch.testing.assert_close(log_p_B, rows.read(positions, positions.gather(x_0)[:, None]).joint[:, 0])
    lam = sampled(on_dit(chosen()), 3, 1)
    under = rows.over(where).under(rows.over(where).codes(lam))
    for at, logits_NS in revealed_rows(x_t, lam).walk(where, 4):
        torch.testing.assert_close(logits_NS, under.logits(*at))


@torch.no_grad()
def test_guidance_samples_what_is_revealed_under_the_same_classes() -> None:
    mixture, labels = on_maskgit(chosen(positions="revealed")), torch.tensor([0, 1, 2])
    x_t, lam = torch.full((3, CODE_LENGTH), CODES), sampled(mixture, 3, 1)
    where = torch.ones_like(x_t, dtype=torch.bool)
    conditional, free = (one.walk(where, 100) for one in mixture.guided(x_t, half(3), lam, labels))
    with_labels, alone = revealed_rows(x_t, lam, labels).over(where), mixture(x_t, half(3), lam, None).over(where)
    classes = with_labels.codes(lam)
    for walk, every in ((conditional, with_labels), (free, alone)):
        (at, logits_NS) = next(walk)
        said: Rows = every.under(classes)
        torch.testing.assert_close(logits_NS, said.logits(*at))


@torch.no_grad()
def test_narrow_products_say_nearly_the_same_of_classes_and_nothing_else() -> None:
    """Of classes alone that are sampled: what is read, and what a token is sampled from under a class, has every digit."""
    x_t, exact, narrow = sequences()[1], on_dit(chosen()), on_dit(chosen(matmul_dtype="bfloat16"))
    lam = sampled(exact, 3, 1)
    every, same = every_class(exact, x_t), every_class(narrow, x_t)
    assert torch.equal(every.features, same.features)
    asked = every.features[:, 0, :, : -CLASSES - 1], UNKNOWN, every.output_head.inner
    context, orders = every.features[:, 0, :, : exact.latent_head.left.in_features], [torch.arange(LENGTH)]
    rough = narrow.latent_head(*asked, context, orders, to_sample=True)
    p, q = every.chain.log_marginal.exp(), rough.chain.log_marginal.exp()
    assert 0 < float((p - q).abs().max()) < 0.02
    torch.testing.assert_close(q.sum(2), torch.ones_like(q[..., 0]))
    codes = narrow(x_t, half(3), lam).features[..., -1].long()
    said, expected = narrow(x_t, half(3), lam).log_probs(), every.under(codes).log_probs()
    assert torch.equal(said, expected)


@torch.no_grad()
def test_a_table_that_is_kept_is_made_anew_for_other_weights() -> None:
    mixture, x_t = on_dit(chosen()), sequences()[1]
    head: ClassHead = mixture.latent_head
    first = every_class(mixture, x_t).output_head.table
    assert every_class(mixture, x_t).output_head.table is first
    head.table.mul_(2)
    second = every_class(mixture, x_t).output_head.table
    torch.testing.assert_close(second.log_p, head.table.log_softmax(1))
    head.table.data.mul_(2)  # by which an engine writes weights
    mixture.train().eval()
    torch.testing.assert_close(every_class(mixture, x_t).output_head.log_class, head.table.log_softmax(1))
    assert not torch.allclose(first.log_p, second.log_p)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="codebook_size must be at least 1, got 0"):
        chosen(codebook_size=0)
    with pytest.raises(ValueError, match="rank must be at least 0, got -1"):
        chosen(rank=-1)
    with pytest.raises(ValueError, match="sinkhorn_tolerance must be 0 where combine=product_of_experts"):
        chosen(sinkhorn_tolerance=0.1, combine="product_of_experts")
    with pytest.raises(ValueError, match="positions must be masked where combine=product_of_experts"):
        chosen(positions="revealed", combine="product_of_experts")
    with pytest.raises(ValueError, match=r"mixture.order must be rows over a network whose positions .*, got 'turns'"):
        on_dit(chosen(order="turns"))
    with pytest.raises(ValueError, match="mixture.order must be rows where the positions are no pixels, got 'columns'"):
        TextSettings(mixture=chosen(order="columns"), objective=Likelihood())
    with pytest.raises(ValueError, match="mixture.positions must be masked over a network of another process"):
        on_unet(chosen(positions="revealed"), shape=(2, 2, 1))
    with pytest.raises(ValueError, match="mixture.positions must be masked over a network of another process"):
        on_dit(chosen(positions="revealed"), process="uniform", time_conditioning=True)
    with pytest.raises(ValueError, match="reach must be at least 0, got -1"):
        chosen(reach=-1)
    assert not chosen().unused() and chosen(positions="revealed").unused() == {"reach": "where positions=revealed"}
    assert chosen(combine="product_of_experts").unused() == {"reach": "where combine=product_of_experts"}
    assert chosen().has_marginals and not chosen(positions="revealed").has_marginals

"""λ as the uniforms of tokens sampled in order: against sums over all strings, and a head that is run anew for each of them."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.base import Latents
from di4c_lm.mixtures.sequential import Ordered, SequentialRows, SequentialSettings
from di4c_lm.processes.denoiser import Positions, sample_along
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import Decoding, sample_keyed
from tests.mixtures.helpers import check_same, enumerated, gradients, on_dit, on_maskgit, sampled
from tests.networks.helpers import CODE_LENGTH, CODES, STATES, dit, half

MASK = STATES - 1
UNKNOWN = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1]], dtype=torch.bool)
KINDS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "context": 0},
    {"order": "random", "context": 1},
    {"candidates": 3, "order": "random", "positions": "revealed"},
    {"positions": "revealed"},
]


def chosen(**settings: Any) -> SequentialSettings:
    return SequentialSettings(**{"freeze_backbone": False, **settings})


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x_0 and x_t, the positions `UNKNOWN` of it masked."""
    x_0 = torch.randint(MASK, UNKNOWN.shape, generator=torch.Generator().manual_seed(seed))
    return x_0, torch.where(UNKNOWN, MASK, x_0)


def predicted(mixture: Any, x_t: Tensor, lam: Latents | None = None) -> SequentialRows:
    found = mixture(x_t, half(len(x_t)), sampled(mixture, len(x_t), 1) if lam is None else lam)
    assert isinstance(found, SequentialRows)
    return found


def test_a_fresh_student_is_its_teacher() -> None:
    teacher, (x_0, x_t) = dit(), sequences()
    student = SequentialSettings(layers=2).over(teacher, torch.Generator().manual_seed(0)).eval()
    positions = Positions.where(UNKNOWN)
    found = predicted(student, x_t).read(positions, positions.gather(x_0)[:, None])
    expected = teacher(x_t, half(3)).read(positions, positions.gather(x_0)[:, None])
    torch.testing.assert_close(found.joint, expected.joint)
    torch.testing.assert_close(found.product, expected.product)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("on", ["dit", "maskgit"])
def test_the_strings_sum_to_one(settings: dict[str, Any], on: str) -> None:
    """Over the masked positions, and over the first of them, from left to right; by `revealed`, whatever the order."""
    if on == "dit":
        mixture, num_states, x_t, where = on_dit(chosen(**settings)), STATES - 1, sequences()[1][:1], UNKNOWN[:1]
    else:
        mixture, num_states = on_maskgit(chosen(**settings)), CODES
        where = torch.tensor([[True, False, True, True]])[:, :CODE_LENGTH]
        x_t = torch.where(where, CODES, torch.zeros_like(where, dtype=torch.int64))
    depends = settings.get("order") == "random" and "positions" not in settings  # on what is sampled before
    for part in (where, *(() if depends else (where & (torch.arange(where.shape[1]) < 3),))):
        positions = Positions.where(part)
        every = torch.tensor(list(itertools.product(range(num_states), repeat=int(part.sum()))))
        reading = predicted(mixture, x_t, sampled(mixture, 1, 2)).read(positions, every.T)
        torch.testing.assert_close(reading.joint.exp().sum(), torch.ones((), dtype=torch.float64))
        assert float((reading.joint - reading.product).detach().abs().max()) > 1e-3


def by_walking(rows: SequentialRows, positions: Positions, x_0: Tensor, where: Tensor) -> Tensor:
    """log p(x_0) of each sequence, one λ, by going through the positions one by one as a sampler does."""
    found = torch.zeros(len(x_0), dtype=torch.float64)

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        found[at[0]] += logits_NS.log_softmax(1).gather(1, x_0[at][:, None])[:, 0]
        return x_0[at]

    sample_along(rows.walk(where, 4), choose)
    return found


@pytest.mark.parametrize("settings", KINDS)
def test_what_is_sampled_one_by_one_is_what_is_read_at_once(settings: dict[str, Any]) -> None:
    mixture, (x_0, x_t), positions = on_dit(chosen(**settings)), sequences(), Positions.where(UNKNOWN)
    rows = predicted(mixture, x_t)
    read = rows.read(positions, positions.gather(x_0)[:, None])
    torch.testing.assert_close(by_walking(rows, positions, x_0, UNKNOWN), read.joint[:, 0])


def plain_log_p(mixture: Any, rows: SequentialRows, b: int, x_0: Tensor, few: int) -> Tensor:
    """log p(x_0) of sequence b from the definitions: the head is run anew for each prefix, logits are changed one by one."""
    head, order = mixture.latent_head, rows.order[b, 0]
    place = sorted(UNKNOWN[b].nonzero()[:, 0].tolist(), key=lambda d: float(order[d]))
    tokens, total = rows.x_t[b].clone(), torch.zeros((), dtype=torch.float64)
    lasts, nears = [head.nothing], []
    for i, d in enumerate(place):
        beside = [d + o for o in head.offsets]
        nears.append([int(tokens[q]) if 0 <= q < len(tokens) else head.nothing for q in beside])
        steps = [0] + [max(-8, min(8, b_ - a)) for a, b_ in itertools.pairwise(place[: i + 1])]
        at = torch.tensor([place[: i + 1]])
        change = head(
            rows.features[b, 0, at],
            at,
            torch.tensor([steps]) + 8,
            torch.tensor([lasts]),
            torch.tensor([nears], dtype=torch.int64).view(1, i + 1, -1),
        )[0, -1]
        features = rows.features[b, 0, d]
        weight, bias = rows.output_head.parameters
        own = features @ weight.T + bias
        changed = own + (change @ weight.T if i else 0)
        possible = torch.arange(STATES) != MASK
        if few:
            likeliest = own.masked_fill(~possible, -torch.inf).topk(few).indices
            is_few = torch.zeros(STATES, dtype=torch.bool).index_fill(0, likeliest, value=True)
            changed = torch.where(is_few, changed, own)
        total = total + changed[x_0[b, d]] - changed[possible].logsumexp(0)
        tokens[d] = x_0[b, d]
        lasts.append(int(x_0[b, d]))
    return total


@pytest.mark.parametrize("settings", KINDS)
def test_the_likelihood_and_its_gradient_are_the_definition_s(settings: dict[str, Any]) -> None:
    """Also where the rows of logits are read a few at a time."""
    (x_0, x_t), positions, found = sequences(), Positions.where(UNKNOWN), []
    for way in ("plain", "whole", "chunks"):
        mixture = on_dit(chosen(**settings))
        rows = predicted(mixture, x_t)
        if way == "plain":
            log_p_B = torch.stack([plain_log_p(mixture, rows, b, x_0, rows.few) for b in range(len(x_0))])
        else:
            chunk_rows = 2 if way == "chunks" else 0
            log_p_B = rows.read(positions, positions.gather(x_0)[:, None], chunk_rows=chunk_rows).joint[:, 0]
        (log_p_B * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        found.append((log_p_B.detach(), gradients(mixture)))
    check_same(*found)
    assert all(
        grad is not None and float(grad.abs().max()) > 0
        for name, grad in found[0][1].items()
        if name.startswith("latent_head.") and "norm" not in name
    )


def test_orders_are_averaged() -> None:
    mixture, (x_0, x_t), positions = on_dit(chosen(order="random")), sequences(), Positions.where(UNKNOWN)
    lam, targets = sampled(mixture, 3, 4), positions.gather(x_0)[:, None]
    each = [predicted(mixture, x_t, Latents(lam.value[:, j, None])).read(positions, targets).joint for j in range(4)]
    found = predicted(mixture, x_t, lam).read(positions, targets).joint
    torch.testing.assert_close(found, torch.stack(each).exp().mean(0).log())
    assert len({float(one[0].detach()) for one in each}) > 1
    assert mixture.num_components(7) == 7 and on_dit(chosen()).num_components(7) == 7
    assert on_dit(chosen(positions="revealed")).num_components(7) == 1


def test_a_part_of_the_masked_positions_has_the_probability_that_sums_over_the_others_give() -> None:
    """Of three masked positions the outer two, in the mean over λ."""
    mixture, where = on_dit(chosen()), torch.tensor([[True, True, True, False, False, False]])
    part = where & torch.tensor([True, False, True, False, False, False])
    x_t = torch.where(where, MASK, sequences()[0][:1])
    every = torch.tensor(list(itertools.product(range(MASK), repeat=3)))
    with torch.no_grad():
        p_E = predicted(mixture, x_t).read(Positions.where(where), every.T).joint[0].exp()
        pair_E = every[:, 0] * MASK + every[:, 2]
        expected = torch.zeros(MASK**2, dtype=torch.float64).index_add(0, pair_E, p_E)
        pairs = torch.tensor(list(itertools.product(range(MASK), repeat=2)))
        apart = predicted(on_dit(chosen(positions="revealed")), x_t).read(Positions.where(part), pairs.T).joint[0].exp()
        differing = torch.where(expected > 0.005, (apart / expected).log().abs(), 0.0).argsort(descending=True)[:2]
        rows = predicted(mixture, x_t, sampled(mixture, 1, 400))
        found = rows.read(Positions.where(part), pairs[differing].T).joint[0].exp()
    torch.testing.assert_close(found, expected[differing], rtol=0.06, atol=0)
    assert float((apart / expected)[differing].log().abs().min()) > 0.12, "sampled alone they are others"


@pytest.mark.parametrize("positions", ["masked", "revealed"])
def test_a_step_samples_what_the_positions_that_it_keeps_depend_on(positions: Any) -> None:
    """From left to right, of all that is masked what stands before the last of them."""
    rows = predicted(on_dit(chosen(positions=positions)), sequences()[1])
    seen = torch.zeros_like(UNKNOWN)

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        seen[at] = True
        return logits_NS.argmax(1)

    needed = UNKNOWN & (UNKNOWN.cumsum(1) == 2)
    sample_along(rows.walk(needed, 4), choose)
    assert torch.equal(
        seen, UNKNOWN & (UNKNOWN.cumsum(1) <= 2) & needed.any(1, keepdim=True) if positions == "masked" else needed
    )
    states: list[Tensor] = []
    sample_keyed(
        on_dit(chosen(positions=positions)), MaskedProcess(MASK), (8, 6), uniform_grid(2), seed=3, on_step=states.append
    )
    assert 0 < int((states[0] != MASK).sum()) < states[0].numel()


def test_the_first_position_and_a_single_one_are_the_network_s() -> None:
    mixture, (x_0, x_t), where = on_dit(chosen(positions="revealed")), sequences(), UNKNOWN & (UNKNOWN.cumsum(1) == 1)
    positions = Positions.where(where)
    reading = predicted(mixture, x_t).read(positions, positions.gather(x_0)[:, None])
    torch.testing.assert_close(reading.joint, reading.product)
    first: list[Tensor] = []
    rows = predicted(mixture, x_t)

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        first.append(logits_NS)
        return x_0[at]

    sample_along(rows.walk(UNKNOWN, 4), choose)
    torch.testing.assert_close(first[0], rows.logits(*where.nonzero(as_tuple=True)))


def test_as_many_candidates_as_states_are_all_of_them() -> None:
    found = []
    for candidates in (0, STATES, 10 * STATES, STATES - 1):
        mixture, (x_0, x_t), positions = on_dit(chosen(candidates=candidates)), sequences(), Positions.where(UNKNOWN)
        found.append(predicted(mixture, x_t).read(positions, positions.gather(x_0)[:, None]).joint)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_states_that_are_no_candidates_keep_their_weights() -> None:
    mixture, (x_0, x_t) = on_dit(chosen(candidates=2)), sequences()
    rows, states = predicted(mixture, x_t), []

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        states.append((logits_NS - rows.logits(*at)).abs() > 1e-9)
        return x_0[at]

    sample_along(rows.walk(UNKNOWN, 4), choose)
    assert not states[0].any() and all(1 <= int(count) <= 2 for changed in states[1:] for count in changed.sum(1))


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "first_hitting", "remasking", "predictor_corrector"])
def test_a_sample_depends_on_its_number_alone(settings: dict[str, Any], sampler: str) -> None:
    mixture, process = on_dit(chosen(**settings)), MaskedProcess(MASK)
    found = [
        sample_keyed(mixture, process, (5, 6), uniform_grid(3), seed=1, sampler=sampler, batch_size=size).x
        for size in (1, 2, 5)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(found[0].unique(dim=0)) > 1


@pytest.mark.parametrize("settings", KINDS)
def test_samples_of_one_step_have_the_likelihood_that_is_read(settings: dict[str, Any]) -> None:
    """A chi-squared test over all strings of two positions, at temperature 1."""
    from scipy.stats import chisquare

    mixture, process, num = on_dit(chosen(**settings)), MaskedProcess(MASK), 4000
    x_t = sequences()[1][:1].clone()
    x_t[0, 3] = 0  # two positions are left
    x = sample_keyed(mixture, process, (num, 6), uniform_grid(1), seed=0, x_init=x_t.expand(num, -1), batch_size=1000).x
    every = torch.tensor(list(itertools.product(range(MASK), repeat=2)))
    lam = sampled(mixture, 1, 8)
    order_KN = predicted(mixture, x_t, lam).order[0][:, x_t[0] == MASK].argsort(1)
    one_of_each = [int((order_KN[:, 0] == first).int().argmax()) for first in order_KN[:, 0].unique()]
    p = predicted(mixture, x_t, Latents(lam.value[:, one_of_each])).read(Positions.where(x_t == MASK), every.T)
    p = p.joint[0].exp()
    count = torch.bincount(x[:, 0] * MASK + x[:, 1], minlength=len(every)).double()
    likely = p * num > 5
    observed = torch.cat([count[likely], count[~likely].sum()[None]])
    expected = torch.cat([p[likely], p[~likely].sum()[None]]) * num
    expected = expected * (num / expected.sum())
    assert chisquare(observed[expected > 0].numpy(), expected[expected > 0].detach().numpy()).pvalue > 1e-4


def test_the_temperature_acts_on_the_changed_logits() -> None:
    """At temperature 0 nearly, each token is the likeliest after those before it."""
    mixture, x_t, likeliest = on_dit(chosen()), sequences()[1], sequences()[1].clone()

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        likeliest[at] = state_N = logits_NS.argmax(1)
        return state_N

    sample_along(predicted(mixture, x_t).walk(UNKNOWN, 4), choose)
    cold = Decoding(temperature=1e-6)
    x = sample_keyed(mixture, MaskedProcess(MASK), (3, 6), uniform_grid(1), seed=0, x_init=x_t, decoding=cold).x
    assert torch.equal(x, likeliest)


def test_guidance_changes_both_predictions_along_one_walk() -> None:
    from di4c_lm.samplers.trajectory import Call

    mixture = on_maskgit(chosen())
    x_t = torch.full((2, CODE_LENGTH), CODES)
    lam = sampled(mixture, 2, 1)
    both = mixture.guided(x_t, half(2), lam, torch.tensor([0, 1]))
    call = Call(torch.tensor([True, True]), both[0], both[1], 0.5)
    tokens, seen = torch.randint(CODES, x_t.shape, generator=torch.Generator().manual_seed(0)), []

    def choose(at: tuple[Tensor, Tensor], logits_NS: Tensor) -> Tensor:
        seen.append(logits_NS.log_softmax(1).gather(1, tokens[at][:, None])[:, 0])
        return tokens[at]

    sample_along(call.walk(x_t == CODES, 4), choose)
    each = []
    for one in both:
        parts: list[Tensor] = []

        def note(at: tuple[Tensor, Tensor], logits_NS: Tensor, parts: list[Tensor] = parts) -> Tensor:
            parts.append(logits_NS)
            return tokens[at]

        sample_along(one.walk(x_t == CODES, 4), note)
        each.append(parts)
    for rank, found in enumerate(seen):
        logits = 1.5 * each[0][rank] - 0.5 * each[1][rank]
        torch.testing.assert_close(found, logits.log_softmax(1).gather(1, tokens[:, rank, None])[:, 0])


def test_positions_are_ordered_by_their_keys() -> None:
    where = torch.tensor([[True, False, True, True], [False, False, True, False]])
    ordered = Ordered.of(where, torch.tensor([[3.0, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64))
    assert ordered.place[0].tolist() == [2, 3, 0] and int(ordered.place[1, 0]) == 2
    assert ordered.is_asked.tolist() == [[True] * 3, [True, False, False]]
    assert ordered.rank.tolist() == [[2, 3, 0, 1], [3, 3, 0, 3]]
    assert (ordered.distance[0] - 8).tolist() == [0, 1, -3]


def test_the_published_noise_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"decoding\.noise must be exact for a mixture whose positions .*got legacy_fp32"
    ):
        sample_keyed(
            on_dit(chosen()),
            MaskedProcess(MASK),
            (1, 6),
            uniform_grid(1),
            seed=0,
            decoding=Decoding(noise="legacy_fp32"),
        )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"candidates": -1}, "candidates must be at least 0, got -1"),
        ({"context": -1}, "context must be at least 0, got -1"),
    ],
)
def test_what_is_impossible_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialSettings(**settings)


def test_a_frozen_network_records_no_gradient() -> None:
    student = SequentialSettings().over(dit(), torch.Generator().manual_seed(0))
    x_0, x_t = sequences()
    assert not predicted(student, x_t).features.requires_grad
    positions = Positions.where(UNKNOWN)
    rows = student(x_t, half(3), enumerated(student, 3))
    rows.read(positions, positions.gather(x_0)[:, None]).joint.sum().backward()
    assert student.latent_head.out.weight.grad is not None
    assert dataclasses.replace(student.settings).freeze_backbone

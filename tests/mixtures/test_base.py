"""λ as an object, predictions that are read (against sums with everything materialised), and students over teachers."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import Chained, Latents, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodeChain, CodesSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import Rows
from di4c_lm.processes.denoiser import LinearHead, Positions
from tests.mixtures.helpers import on_maskgit, sampled
from tests.networks.helpers import STATES as STATES_OF_DIT
from tests.networks.helpers import codes, dit, dit_config, half, tokens

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
    chain: Any = prediction.chain
    step = chain.log_step
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


def test_codes_follow_the_chain_and_the_same_latents_are_the_same_codes() -> None:
    prediction = chained()
    lam = Latents(torch.rand(BATCH, 4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    code_BND = prediction.codes(lam)
    assert torch.equal(code_BND, prediction.codes(lam))
    assert torch.equal(code_BND[..., ::2], code_BND[..., 1::2]), "one code a window"
    share = torch.nn.functional.one_hot(code_BND[..., ::2], CODES).double().mean(1)
    torch.testing.assert_close(share, prediction.chain.log_marginal.exp(), atol=0.04, rtol=0)


def test_latents_are_indexed_by_sequences_and_taken_apart() -> None:
    lam = Latents(torch.arange(6.0).view(2, 3, 1))
    assert len(lam) == 2 and lam.num_lambdas == 3
    assert torch.equal(lam[torch.tensor([1])].value, lam.value[1:])
    assert lam.one_a_row().value.flatten().tolist() == list(range(6)) and len(lam.one_a_row()) == 6


KINDS = [
    TokenSettings(),
    AdaLNSettings(distribution="codebook", codebook_size=4, inject_at=1),
    CodesSettings(codebook_size=3, window=2),
    ClassChainSettings(codebook_size=3, freeze_backbone=False),
]
FROZEN = [dataclasses.replace(settings, freeze_backbone=True) for settings in KINDS]


def predicted(mixture: Any) -> Tensor:
    return mixture(tokens(2), half(2), sampled(mixture, 2, 3)).features


@pytest.mark.parametrize("settings", [*KINDS, *FROZEN])
def test_a_student_begins_as_its_teacher_by_its_generator_alone(settings: Any) -> None:
    teacher, before = dit().float(), torch.random.get_rng_state()
    one, again = (settings.over(teacher, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.training and next(one.parameters()).dtype == torch.float32
    found, expected = one.tensors(), dict(teacher.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert {name for name in found if one.owns(name)} == set(found) - set(expected)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in found.items())
    other = settings.over(teacher, torch.Generator().manual_seed(6)).tensors()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in found.items())
    torch.testing.assert_close(one.eval()(tokens(2), half(2)).features, teacher(tokens(2), half(2)).features)


@pytest.mark.parametrize("settings", FROZEN)
def test_a_frozen_backbone_is_the_teacher_s_weights_themselves(settings: Any) -> None:
    teacher = dit()
    student = settings.over(teacher, torch.Generator().manual_seed(5))
    ours, theirs = dict(student.network.named_parameters()), dict(teacher.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs) and set(ours) == set(theirs)
    assert not any(parameter.requires_grad for parameter in ours.values())
    own = {name for name, _ in student.named_parameters()}
    assert own and not own & set(theirs) and all(map(student.learns_apart, own))
    teacher.eval()
    assert student.network.training, "modules are the student's own, so that the teacher is not run in training mode"
    predicted(student).square().sum().backward()
    assert any(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    teacher.to(torch.float32)
    assert next(iter(student.network.parameters())).dtype == torch.float32, "moved with the teacher: one copy"


@pytest.mark.parametrize("settings", [*KINDS, *FROZEN])
def test_a_second_round_hands_on_lambda(settings: Any) -> None:
    first = settings.over(dit(), torch.Generator().manual_seed(5))
    for parameter in first.parameters():
        parameter.data += 0.1
    second = settings.over(first, torch.Generator().manual_seed(6))
    assert all(torch.equal(tensor, first.tensors()[name]) for name, tensor in second.tensors().items())
    torch.testing.assert_close(predicted(second.eval()), predicted(first.eval()))
    with pytest.raises(ValueError, match="mixture must be that of the teacher"):
        TokenSettings(distribution="stratified").over(first, torch.Generator())
    with pytest.raises(ValueError, match="mixture must be that of the teacher"):
        NoMixture().over(first, torch.Generator())


def test_without_lambda_a_student_is_a_copy() -> None:
    teacher = dit()
    student = NoMixture().over(teacher, torch.Generator().manual_seed(0), model=dit_config(dropout=0.5))
    assert student.config.dropout == 0.5 and student.training and not student.has_latents
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
    assert student.sample_latents(2, 3, torch.Generator(), torch.device("cpu")) is None


def test_a_teacher_of_another_shape_is_refused_by_every_name() -> None:
    with pytest.raises(
        ValueError, match="(?s)the student of this teacher: .*misshapen: blocks.0.attn_qkv.weight"
    ) as error:
        KINDS[0].over(dit(), torch.Generator().manual_seed(0), model=dit_config(hidden_size=32))
    assert "misshapen: vocab_embed.embedding is 11x16, expected 11x32" in str(error.value)


@pytest.mark.parametrize("settings", [*KINDS, *FROZEN])
def test_tensors_are_taken_in_again(settings: Any) -> None:
    one, other = (settings.over(dit(seed=seed), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    other.load(one.tensors())
    assert torch.equal(predicted(one.eval()), predicted(other.eval()))
    head = one.tensors(whole=False)
    assert set(head) == {name for name in one.tensors() if one.owns(name)}
    state = {name: parameter.detach() + 1 for name, parameter in one.named_parameters()}
    averaged = one.tensors(state)
    assert set(averaged) == set(one.tensors())
    for name, tensor in head.items():
        assert torch.equal(averaged[name], tensor + 1)


def test_exact_weights_outlive_a_cast() -> None:
    student = FROZEN[0].over(dit().float(), torch.Generator().manual_seed(1))
    exact = {name: tensor.clone() for name, tensor in student.tensors().items()}
    student.keep_exact()
    student.to(torch.bfloat16)
    of_network = [name for name in exact if not student.owns(name)]
    assert all(torch.equal(student.tensors()[name], exact[name]) for name in of_network)


def test_what_is_not_the_mixture_s_is_the_network_s() -> None:
    mixture = KINDS[0].over(dit(), torch.Generator().manual_seed(1))
    assert mixture.num_states == STATES_OF_DIT and mixture.mask_id == STATES_OF_DIT - 1
    mixture.activation_checkpointing, mixture.matmul_dtype = True, torch.bfloat16
    assert mixture.network.activation_checkpointing and mixture.output_head().matmul_dtype == torch.bfloat16
    with pytest.raises(AttributeError, match="nowhere"):
        mixture.nowhere  # noqa: B018


def test_guidance_is_under_one_and_the_same_lambda() -> None:
    mixture, x_t, labels = on_maskgit(TokenSettings()), codes(2), torch.tensor([0, 1])
    lam = sampled(mixture, 2, 1)
    conditional, free = mixture.guided(x_t, half(2), lam, labels)
    torch.testing.assert_close(conditional.features, mixture(x_t, half(2), lam, labels).features)
    torch.testing.assert_close(free.features, mixture(x_t, half(2), lam).features)

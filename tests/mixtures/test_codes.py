"""Latent codes: their chain against sums over all z, and what each code makes of the prediction on the three networks."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.codes import CodeChain, CodesSettings
from di4c_lm.processes.denoiser import LinearHead
from tests.losses import oracle
from tests.losses.problem import FIELDS, Problem, fields_of, random_problem
from tests.mixtures.helpers import enumerated, gradients, on_dit, on_maskgit, on_unet, sampled
from tests.networks.helpers import CODE_LENGTH, LENGTH, codes, dit, half, images, tokens, unet


def chain(num_batch: int = 2, num_windows: int = 3, num_codes: int = 3, *, seed: int = 0, window: int = 2) -> CodeChain:
    rng = torch.Generator().manual_seed(seed)
    score = torch.randn(num_batch, num_windows, num_codes, num_codes, generator=rng, dtype=torch.float64) * 2
    score[:, 0] = score[:, 0, :1]
    return CodeChain(score.log_softmax(3), window)


def all_z(found: CodeChain) -> tuple[Tensor, Tensor]:
    """All sequences of codes (K, W), and log p of each by the definition (B, K)."""
    num_batch, num_windows, num_codes, _ = found.log_step.shape
    code_KW = torch.tensor(list(itertools.product(range(num_codes), repeat=num_windows)))
    log_p_BK = torch.zeros(num_batch, len(code_KW), dtype=torch.float64)
    before_K = torch.zeros(len(code_KW), dtype=torch.int64)
    for w, code_K in enumerate(code_KW.unbind(1)):
        log_p_BK += found.log_step[:, w, before_K, code_K]
        before_K = code_K
    return code_KW, log_p_BK


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_likelihood_and_marginals_are_sums_over_all_z(num_windows: int, num_codes: int, seed: int) -> None:
    found = chain(2, num_windows, num_codes, seed=seed)
    code_KW, log_p_BK = all_z(found)
    torch.testing.assert_close(log_p_BK.logsumexp(1), torch.zeros(2, dtype=torch.float64))
    emission = torch.randn(2, num_windows, 4, num_codes, generator=torch.Generator().manual_seed(seed)).double() * 30
    along_BKTW = emission[:, torch.arange(num_windows), :, code_KW].permute(2, 0, 3, 1)
    expected = (log_p_BK[..., None] + along_BKTW.sum(3)).logsumexp(1)
    torch.testing.assert_close(found.log_prob(emission), expected)
    for w, j in itertools.product(range(num_windows), range(num_codes)):
        marginal_B = log_p_BK[:, code_KW[:, w] == j].logsumexp(1)
        torch.testing.assert_close(found.log_marginal[:, w, j], marginal_B)


def test_gradient_of_the_likelihood() -> None:
    score = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    emission = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def log_prob(score: Tensor, emission: Tensor) -> Tensor:
        return CodeChain(score.log_softmax(3), 1).log_prob(emission)

    assert torch.autograd.gradcheck(log_prob, (score, emission))


def test_one_window_is_a_mixture() -> None:
    found = chain(1, 1, 4)
    emission = torch.randn(1, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (found.log_step[0, 0, 0] + emission[0, 0]).logsumexp(1)
    torch.testing.assert_close(found.log_prob(emission)[0], expected)


def test_samples_have_the_chain_s_distribution() -> None:
    found = chain(1, 3, 3, seed=3)
    code_KW, log_p_BK = all_z(found)
    count = 40_000
    u = torch.rand(1, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sample_NW = found.sample(u)[0]
    place = torch.tensor([9, 3, 1])
    seen_K = (sample_NW * place).sum(1).bincount(minlength=27).double()
    expected_K = count * log_p_BK[0].exp()
    assert torch.equal((code_KW * place).sum(1), torch.arange(27))
    assert float(((seen_K - expected_K) ** 2 / expected_K).sum()) < 60  # 26 degrees of freedom


def test_a_sample_is_of_its_own_sequence() -> None:
    found = chain(3)
    u = torch.rand(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = dataclasses.replace(found, log_step=found.log_step[2:]).sample(u[2:])
    assert torch.equal(found.sample(u)[2:], alone)


def test_positions_fall_into_windows() -> None:
    assert chain(window=2).window_of(torch.arange(5)).tolist() == [0, 0, 1, 1, 2]


def test_the_first_window_has_none_before_it() -> None:
    mixture = on_dit(chosen(window=2))
    log_step = mixture(tokens(2), half(2), enumerated(mixture, 2)).chain.log_step
    torch.testing.assert_close(log_step[:, 0], log_step[:, 0, :1].expand_as(log_step[:, 0]))
    assert float((log_step[:, 1] - log_step[:, 1, :1]).abs().max().detach()) > 0.1, "as the others have"


def test_impossible_observations_stay_finite() -> None:
    """Emissions far apart, as an impossible token makes them, lose no other path and yield no NaN."""
    found = chain(1, 4, 3)
    emission = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    emission[0, 2, 0, :2] = -1e6
    value = found.log_prob(emission.requires_grad_())
    value.sum().backward()
    assert emission.grad is not None and bool(emission.grad.isfinite().all())
    log_marginal = found.log_marginal[0, 2, 2]
    assert float(value.detach()) == pytest.approx(float(log_marginal), abs=1e-9)
    assert math.isfinite(float(value.detach()))


def read_by_enumeration(problem: Problem, log_p_MLS: Tensor, found: CodeChain) -> dict[str, Tensor]:
    """Every field of `Reading` as sums over all sequences of codes, straight from the definitions."""
    code_KW, log_prior_BK = all_z(found)
    fields: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    for b in range(problem.positions.num_examples):
        here = (problem.positions.example == b).nonzero()[:, 0]
        window_N = problem.positions.position[here] // found.window
        log_p_KNS = torch.stack([log_p_MLS[here, z_W[window_N]] for z_W in code_KW])
        log_prior_K, targets_NT = log_prior_BK[b], problem.targets[here]
        log_mean_NS = (log_prior_K[:, None, None] + log_p_KNS).logsumexp(0)
        log_x_KT = log_p_KNS.gather(2, targets_NT.expand(len(code_KW), -1, -1)).sum(1)
        q = [q_MS[here] for q_MS in problem.distributions]
        fields["joint"].append((log_prior_K[:, None] + log_x_KT).logsumexp(0))
        fields["product"].append(log_mean_NS.gather(1, targets_NT).sum(0))
        fields["divergence"].append(torch.stack([oracle.divergence(q_NS, log_mean_NS).sum() for q_NS in q]))
        fields["component_divergence"].append((log_prior_K.exp() * oracle.divergence(q[0], log_p_KNS).sum(1)).sum())
    return {name: torch.stack(values) for name, values in fields.items()}


def read_lean(problem: Problem, leaves: list[Tensor], chunk_rows: int) -> dict[str, Tensor]:
    """The same by the chained prediction, of features that stand at every position of two sequences of 5."""
    features, weight, bias, score = leaves
    whole = features.new_zeros(2, 5, *features.shape[1:])
    whole = whole.index_put((problem.positions.example, problem.positions.position), features)
    head = LinearHead(weight, bias, impossible=problem.impossible)
    prediction = Chained(whole.transpose(1, 2), head, CodeChain(score.log_softmax(3), 2))
    q = [q_MS.to(features.dtype) for q_MS in problem.distributions]
    return fields_of(prediction.read(problem.positions, problem.targets, q, components=True, chunk_rows=chunk_rows))


def chained_problem(seed: int, scale: float = 1.0) -> tuple[Problem, list[Tensor]]:
    """Two sequences of 5 positions in windows of 2, 3 codes: a problem and the leaves of both ways to read it."""
    problem = random_problem(seed, 2, 3, 5, 7, masked_share=0.7, with_impossible=True)
    score = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)
    score[:, 0] = score[:, 0, :1]
    problem.weight = problem.weight * scale
    return problem, [problem.features, problem.weight, problem.bias, score]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk_rows", [0, 4])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_a_chained_reading_and_its_gradients_are_sums_over_all_z(seed: int, chunk_rows: int, scale: float) -> None:
    """At scale 60 whole states underflow in every component, which takes the way through the log domain."""
    problem, inputs = chained_problem(seed, scale)
    values, grads = [], []
    for way in ("lean", "enumerated"):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in inputs]
        if way == "lean":
            fields = read_lean(problem, leaves, chunk_rows)
        else:
            logits_MLS = (leaves[0] @ leaves[1].T + leaves[2]).index_fill(2, torch.tensor([6]), -1e6)
            fields = read_by_enumeration(problem, logits_MLS.log_softmax(2), CodeChain(leaves[3].log_softmax(3), 2))
        values.append({name: value.detach() for name, value in fields.items()})
        total = torch.stack([(problem.weights[name] * fields[name]).sum() for name in FIELDS])
        grads.append(torch.autograd.grad(total.sum(), leaves))
    torch.testing.assert_close(*values)
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))


def test_a_chained_reading_in_float32_is_near() -> None:
    problem, inputs = chained_problem(0)
    exact, narrow = read_lean(problem, inputs, 0), read_lean(problem, [value.float() for value in inputs], 0)
    torch.testing.assert_close(narrow, exact, rtol=1e-4, atol=1e-4, check_dtype=False)


def chosen(**more: Any) -> CodesSettings:
    return CodesSettings(**{"codebook_size": 3, "window": 2, "init_scale": 0.5, **more})


def code_of(sample: Tensor, every: Tensor) -> Tensor:
    """Which code each position (B, N, D) of a sample is said under; each is under one."""
    same_BNLD = torch.isclose(sample[:, :, None], every[:, None], rtol=1e-9, atol=1e-12).all(-1)
    assert bool(same_BNLD.any(2).all())
    return same_BNLD.double().argmax(2)


@pytest.mark.parametrize("window", [0, 1, 2, 4])
@pytest.mark.parametrize("more", [{}, {"ties": "none"}, {"weights": "uniform"}])
def test_a_sample_says_of_each_position_what_its_window_s_code_says(window: int, more: dict[str, str]) -> None:
    mixture, x_t = on_dit(chosen(window=window, **more)), tokens(2)
    every = mixture(x_t, half(2), enumerated(mixture, 2))
    assert isinstance(every, Chained) and every.features.shape[:3] == (2, 3, LENGTH)
    num_windows = every.chain.num_windows
    assert num_windows == (1 if window == 0 else -(-LENGTH // window))
    chain: Any = every.chain
    torch.testing.assert_close(chain.log_step.exp().sum(3), torch.ones(2, num_windows, 3).double())
    sample = mixture(x_t, half(2), sampled(mixture, 2, 7))
    assert not isinstance(sample, Chained)
    code_BND = code_of(sample.features, every.features)
    assert torch.equal(code_BND, code_BND[:, :, every.chain.window_of(torch.arange(LENGTH)) * (window or LENGTH)])


def test_samples_follow_the_chain() -> None:
    mixture, x_t = on_dit(chosen(window=3)), tokens(1)
    every = mixture(x_t, half(1), enumerated(mixture, 1))
    sample = mixture(x_t, half(1), sampled(mixture, 1, 20_000))
    weight_DL = every.chain.log_marginal[0, every.chain.window_of(torch.arange(LENGTH))].exp()
    mean_DH = torch.einsum("dl,ldh->dh", weight_DL, every.features[0])
    torch.testing.assert_close(sample.features[0].mean(0), mean_DH, rtol=0, atol=0.06)


@pytest.mark.parametrize("freeze_backbone", [False, True])
def test_without_modulation_the_student_is_its_teacher(*, freeze_backbone: bool) -> None:
    teacher, x_t = dit(), tokens(2)
    student = chosen(freeze_backbone=freeze_backbone).over(teacher, torch.Generator().manual_seed(0)).eval()
    student.latent_head.modulation.weight.data.zero_()
    expected = teacher(x_t, half(2)).log_probs()
    found = student(x_t, half(2), enumerated(student, 2)).log_probs()
    torch.testing.assert_close(found, expected.expand_as(found))
    torch.testing.assert_close(student(x_t, half(2)).log_probs(), expected)


def test_time_conditioning_and_shared_rows_agree_with_the_plain_way() -> None:
    mixture = on_dit(chosen(), time_conditioning=True)
    x_t, t = tokens(2).repeat(2, 1), torch.tensor([0.3, 0.8]).repeat(2)
    lam = sampled(mixture, 4, 2)
    with torch.no_grad():
        shared = mixture(x_t, t, lam).features
    torch.testing.assert_close(shared, mixture(x_t, t, lam).features.detach())


@pytest.mark.parametrize("make", [on_dit, on_maskgit])
def test_recomputed_activations_give_the_same_gradients(make: Any) -> None:
    found = []
    for recompute in (False, True):
        mixture = make(chosen())
        mixture.activation_checkpointing = recompute
        x_t = tokens(2) if make is on_dit else codes(2)
        every = mixture(x_t, half(2), enumerated(mixture, 2))
        (every.features.square().sum() + every.chain.log_step[..., 0].sum()).backward()
        found.append(gradients(mixture))
    unused = {name for name, grad in found[0].items() if grad is None}
    assert all(name.startswith("network.") and ("output_layer.linear" in name or ".bias" in name) for name in unused)
    torch.testing.assert_close(*[{name: grad for name, grad in one.items() if name not in unused} for one in found])


def test_on_image_codes_a_window_s_positions_share_a_code() -> None:
    mixture, x_t, labels = on_maskgit(chosen()), codes(2), torch.tensor([0, -1])
    every = mixture(x_t, half(2), enumerated(mixture, 2), labels)
    assert every.features.shape[:3] == (2, 3, CODE_LENGTH)
    sample = mixture(x_t, half(2), sampled(mixture, 2, 50), labels)
    code_BND = code_of(sample.features, every.features)
    assert torch.equal(code_BND[..., 0], code_BND[..., 1]) and torch.equal(code_BND[..., 2], code_BND[..., 3])
    assert len(code_BND.flatten(0, 1).unique(dim=0)) > 3, "windows of one sample may differ"


@pytest.mark.parametrize("colours", [1, 3])
def test_on_pixels_a_window_s_pixels_share_a_code_in_all_their_colours(colours: int) -> None:
    shape, t = (4, 6, colours), torch.tensor([0.2, 0.7])
    mixture, x_t = on_unet(chosen(window=12), shape=shape), images(2, (4, 6, colours))
    every = mixture(x_t, t, enumerated(mixture, 2))
    assert every.chain.log_step.shape == (2, 2, 3, 3)
    window_D = every.chain.window_of(torch.arange(24 * colours))
    assert window_D.tolist() == ([0] * 12 + [1] * 12) * colours
    code_BND = code_of(mixture(x_t, t, sampled(mixture, 2, 40)).features, every.features)
    assert torch.equal(code_BND, code_BND[..., window_D * 12])
    assert len(code_BND.flatten(0, 1).unique(dim=0)) > 3


def test_on_pixels_it_begins_near_its_teacher_and_gradients_reach_every_parameter() -> None:
    teacher, x_t, t = unet(), images(2), torch.tensor([0.2, 0.7])
    student = chosen(window=12).over(teacher, torch.Generator().manual_seed(0)).eval()
    torch.testing.assert_close(student(x_t, t).features, teacher(x_t, t).features)
    student.latent_output.output_head.weight.data.zero_()
    every = student(x_t, t, enumerated(student, 2))
    torch.testing.assert_close(every.features, teacher(x_t, t).features.expand(-1, 3, -1, -1))
    mixture = on_unet(chosen(window=12))
    every = mixture(x_t, t, enumerated(mixture, 2))
    (every.features.square().sum() + every.chain.log_step[..., 0].sum()).backward()
    assert all(grad is not None and bool(grad.any()) for grad in gradients(mixture).values())


def test_guidance_is_under_the_codes_sampled_with_the_condition() -> None:
    count = 60  # enough that the free codes of some would differ
    mixture, labels = on_maskgit(chosen()), torch.arange(3).repeat(count // 3)
    x_t, lam = codes(count), sampled(mixture, count, 1)
    conditional, free = mixture.guided(x_t, half(count), lam, labels)
    torch.testing.assert_close(conditional.log_probs(), mixture(x_t, half(count), lam, labels).log_probs())
    with_class, without = (mixture(x_t, half(count), enumerated(mixture, count), given) for given in (labels, None))
    code_BND = code_of(conditional.features, with_class.features)
    torch.testing.assert_close(free.log_probs(), without.under(code_BND).log_probs())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 0, got -1"):
        chosen(window=-1)
    with pytest.raises(ValueError, match="mixture.codebook_size must be at least 1, got 0"):
        on_dit(chosen(codebook_size=0))
    assert chosen(codebook_size=0).sized(5).codebook_size == 5 and chosen().sized(5).codebook_size == 3

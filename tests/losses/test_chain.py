"""Di4C's terms where λ is a string of codes, against sums over all strings with everything materialised."""

import itertools

import pytest
import torch
from torch import Tensor

from di4c_lm.losses.di4c import Terms, UpperSide, di4c_terms
from di4c_lm.losses.reading import mixture_marginals, read_mixture
from di4c_lm.mixtures.code_chain import CodeChain
from di4c_lm.networks.output_head import LinearHead
from tests.losses.problem import FIELDS, Problem, draw

WINDOW, CODES, LENGTH = 2, 3, 5


def problem(seed: int = 0) -> tuple[Problem, Tensor]:
    """Positions and features of two examples, and the scores of a chain."""
    found = draw(seed, 2, CODES, LENGTH, 7, masked_share=0.7, with_impossible=True)
    rng = torch.Generator().manual_seed(seed + 50)
    score = torch.randn(2, 3, CODES, CODES, generator=rng, dtype=torch.float64)
    return found, torch.where(torch.arange(3)[:, None, None] == 0, score[:, :, :1], score)


def by_enumeration(found: Problem, features: Tensor, weight: Tensor, bias: Tensor, score: Tensor) -> dict[str, Tensor]:
    """All fields of `Terms` straight from the definitions."""
    logits = features @ weight.T + bias
    if found.impossible is not None:
        logits = logits.index_fill(2, torch.tensor([found.impossible]), -1e6)
    log_p_MLS, log_step = logits.log_softmax(2), score.log_softmax(3)
    example_M, window_M = found.positions.example, found.positions.position // WINDOW
    strings = list(itertools.product(range(CODES), repeat=3))
    fields: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    for b in range(2):
        prior = torch.stack(
            [log_step[b, 0, 0, z[0]] + log_step[b, 1, z[0], z[1]] + log_step[b, 2, z[1], z[2]] for z in strings]
        )
        here = (example_M == b).nonzero()[:, 0]
        of_string = torch.stack(
            [torch.stack([log_p_MLS[m, z[int(window_M[m])]] for m in here]) for z in strings]
        )  # (strings, positions, S)
        mean_S = (prior[:, None, None] + of_string).logsumexp(0)

        def joint(x: Tensor, of_string: Tensor = of_string, prior: Tensor = prior) -> Tensor:
            return -(
                prior + of_string.gather(2, x[None, :, None].expand(len(strings), -1, 1))[..., 0].sum(1)
            ).logsumexp(0)

        def product(x: Tensor, mean_S: Tensor = mean_S) -> Tensor:
            return mean_S.gather(1, x[:, None]).sum()

        def divergence(q: Tensor, log_p: Tensor) -> Tensor:
            return torch.where(q > 0, q * (q.clamp_min(1e-300).log() - log_p), 0.0).sum()

        teacher, upper = found.teacher[here], found.upper
        samples = [x[here] for x in upper.samples.unbind(1)]
        fields["data_joint"].append(joint(found.x_0[here]))
        fields["data_product"].append(product(found.x_0[here]))
        fields["data_marginal"].append(divergence(teacher, mean_S))
        fields["consistency_joint"].append(torch.stack([joint(x) for x in samples]).mean())
        fields["consistency_product"].append(torch.stack([product(x) for x in samples]).mean())
        fields["consistency_marginal"].append(divergence(upper.marginal[here], mean_S))
        each = torch.stack([divergence(teacher, log_p) for log_p in of_string])
        fields["distil"].append((prior.exp() * each).sum())
    return {name: torch.stack(values) for name, values in fields.items()}


def lean(found: Problem, leaves: list[Tensor], chunk_rows: int) -> Terms:
    features, weight, bias, score = leaves
    return di4c_terms(
        features,
        LinearHead(weight, bias, impossible=found.impossible),
        found.positions,
        found.x_0,
        found.teacher.to(features.dtype),
        UpperSide(samples=found.upper.samples, marginal=found.upper.marginal.to(features.dtype)),
        chain=CodeChain(score.log_softmax(3), WINDOW),
        distil=True,
        chunk_rows=chunk_rows,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk_rows", [0, 4])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_terms_and_gradients_match_the_sum_over_strings(seed: int, chunk_rows: int, scale: float) -> None:
    """At scale 60 whole states underflow in every component, which takes the way through the log domain."""
    found, score = problem(seed)
    inputs = [found.features, found.weight * scale, found.bias, score]
    values, grads = [], []
    for compute in (
        lambda leaves: {name: getattr(lean(found, leaves, chunk_rows), name) for name in FIELDS},
        lambda leaves: by_enumeration(found, *leaves),
    ):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in inputs]
        fields = compute(leaves)
        total = sum((found.weights[name] * fields[name]).sum() for name in FIELDS)
        values.append({name: fields[name].detach() for name in FIELDS})
        grads.append(torch.autograd.grad(total, leaves))  # pyright: ignore
    for name in FIELDS:
        torch.testing.assert_close(values[0][name], values[1][name], msg=lambda m, name=name: f"{name}: {m}")
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))


def test_float32_is_near() -> None:
    found, score = problem()
    inputs = [found.features, found.weight, found.bias, score]
    exact = lean(found, inputs, 0)
    narrow = lean(found, [value.float() for value in inputs], 0)
    for name in FIELDS:
        torch.testing.assert_close(getattr(narrow, name), getattr(exact, name), rtol=1e-4, atol=1e-4, check_dtype=False)


def test_equal_weights_are_the_default() -> None:
    found, _ = problem()
    output_head = LinearHead(found.weight, found.bias, impossible=found.impossible)
    equal = torch.full((len(found.x_0), CODES), 1 / CODES, dtype=torch.float64).log()
    inputs = (found.features, found.positions.position, output_head, found.x_0[:, None], (found.teacher,))
    for given, plain in zip(
        vars(read_mixture(*inputs, log_weight=equal, component_divergence=True)).values(),
        vars(read_mixture(*inputs, component_divergence=True)).values(),
        strict=True,
    ):
        torch.testing.assert_close(given, plain)


def test_mean_law_weighs_the_components() -> None:
    found, _ = problem()
    output_head = LinearHead(found.weight, found.bias)
    weight_ML = torch.rand(len(found.x_0), CODES, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    p_MLS = (found.features @ found.weight.T + found.bias).softmax(2)
    law_MS = mixture_marginals(
        found.features, found.positions.position, output_head, log_weight=weight_ML.log(), chunk_rows=2
    )
    torch.testing.assert_close(law_MS, (weight_ML[..., None] * p_MLS).sum(1))

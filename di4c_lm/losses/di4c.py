"""The terms of Di4C (Hayakawa et al. 2025, section 3) from factored predictions, domain-free and unreduced.

With ℓ_j^d(v) = log p(x_0^d = v | x_t; λ_j), lme_j the log-mean-exp over the L draws, m^d = lme_j ℓ_j^d:

    corr(x)      = - lme_j Σ_d ℓ_j^d(x^d) + Σ_d m^d(x^d)
    data         = α(t) corr(x_0) + Σ_d KL(teacher^d ‖ m^d)
    consistency  = mean_i corr(x̂_i) + Σ_d KL(m̄_u^d ‖ m^d)
    distil       = mean_j Σ_d KL(teacher^d ‖ ℓ_j^d)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import read_mixture
from di4c_lm.mixtures.class_chain import ClassChain
from di4c_lm.mixtures.code_chain import CodeChain
from di4c_lm.processes.denoiser import OutputHead


@dataclass(frozen=True, kw_only=True)
class UpperSide:
    """The consistency term's target: samples x̂_i and the mixture's marginal m̄_u, both from x_u ~ teacher(x_t), without gradient."""

    samples: Int64[Tensor, "M I"]
    marginal: Float[Tensor, "M S"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of each example, in nats; `joint` and `product` are the two parts of a correlation term, corr = joint + product."""

    data_joint: Float[Tensor, " B"]  # - lme_j Σ_d ℓ_j^d(x_0^d)
    data_product: Float[Tensor, " B"]  # Σ_d m^d(x_0^d)
    data_marginal: Float[Tensor, " B"]  # Σ_d KL(teacher^d ‖ m^d)
    consistency_joint: Float[Tensor, " B"]
    consistency_product: Float[Tensor, " B"]
    consistency_marginal: Float[Tensor, " B"]  # Σ_d KL(m̄_u^d ‖ m^d)
    distil: Float[Tensor, " B"]  # mean_j Σ_d KL(teacher^d ‖ ℓ_j^d)

    @property
    def data_corr(self) -> Float[Tensor, " B"]:
        """corr(x_0): what the product of marginals misses of the datapoint."""
        return self.data_joint + self.data_product

    @property
    def consistency_corr(self) -> Float[Tensor, " B"]:
        """mean_i corr(x̂_i)."""
        return self.consistency_joint + self.consistency_product


def di4c_terms(
    features: Float[Tensor, "M N H"],
    output_head: OutputHead,
    positions: Positions,
    x_0: Int64[Tensor, " M"],
    teacher: Float[Tensor, "M S"] | None,
    upper: UpperSide | None = None,
    *,
    chain: CodeChain | ClassChain | None = None,
    distil: bool = False,
    chunk_rows: int = 0,
    validate: bool = False,
) -> Terms:
    """All terms from one reading of the student at x_t.

    `features` are the student's at the positions for L draws of λ (of token classes in one row, N = 1), `x_0` the data there, `teacher` its
    probabilities. With `chain` they are those under each of L codes, λ is a string of codes by the chain's law, and lme_j becomes the
    log-mean-exp over that law. Without `teacher` the terms that compare with it are 0, without `upper` those of consistency, without
    `distil` that one. Shapes are always checked, and with `validate` the values too (NaN, sums, indices), for callers outside the training
    loop: `ValueError` names the argument, its shape and what was expected.
    """
    _check_shapes(features, output_head, positions, x_0, teacher, upper)
    if validate:
        _check_values(features, output_head, x_0, teacher, upper)
    targets_MT = x_0[:, None] if upper is None else torch.cat([x_0[:, None], upper.samples], 1)
    laws = [law_MS for law_MS in (teacher, None if upper is None else upper.marginal) if law_MS is not None]
    log_weight_ML = None if chain is None else code_weights(chain, positions)
    read = read_mixture(
        features,
        positions.position,
        output_head,
        targets_MT,
        laws,
        log_weight=log_weight_ML,
        component_divergence=distil,
        chunk_rows=chunk_rows,
    )
    joint_BT, product_BT = joint_and_product(read.target_log_p, positions, chain)
    kl_BR = positions.per_example(read.divergence)
    none_B = torch.zeros_like(joint_BT[:, 0])
    return Terms(
        data_joint=joint_BT[:, 0],
        data_product=product_BT[:, 0],
        data_marginal=none_B if teacher is None else kl_BR[:, 0],
        consistency_joint=none_B if upper is None else joint_BT[:, 1:].mean(1),
        consistency_product=none_B if upper is None else product_BT[:, 1:].mean(1),
        consistency_marginal=none_B if upper is None else kl_BR[:, -1],
        distil=positions.per_example(read.component_divergence),
    )


def code_weights(chain: CodeChain | ClassChain, positions: Positions) -> Float[Tensor, "M L"]:
    """log p(z = j) of the code at each site."""
    return chain.log_marginal[positions.example, chain.window_of(positions.position)]


def joint_and_product(
    target_log_p: Float[Tensor, "M L T"], positions: Positions, chain: CodeChain | ClassChain | None = None
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """- lme_j Σ_d ℓ_j^d(x^d) and Σ_d lme_j ℓ_j^d(x^d) of each example and target, in float64; with `chain` over its strings of codes."""
    if chain is not None:
        num_batch, num_windows = positions.num_examples, chain.num_windows
        slot_M = positions.example * num_windows + chain.window_of(positions.position)
        emission = torch.zeros(
            num_batch * num_windows, *target_log_p.shape[1:], dtype=torch.float64, device=slot_M.device
        )
        emission_BWLT = emission.index_add(0, slot_M, target_log_p.double()).view(
            num_batch, num_windows, *emission.shape[1:]
        )
        weight_ML1 = code_weights(chain, positions).double()[..., None]
        product_BT = positions.per_example((target_log_p + weight_ML1).logsumexp(1))
        return -chain.log_prob(emission_BWLT.transpose(2, 3)), product_BT
    log_L = math.log(target_log_p.shape[1])
    joint_BT = log_L - positions.per_example(target_log_p).logsumexp(1)
    product_BT = positions.per_example(target_log_p.double().logsumexp(1) - log_L)
    return joint_BT, product_BT


def _check_shapes(
    features: Tensor,
    output_head: OutputHead,
    positions: Positions,
    x_0: Tensor,
    teacher: Tensor | None,
    upper: UpperSide | None,
) -> None:
    num_sites, num_states = len(positions.position), output_head.num_states
    expected: list[tuple[str, Tensor, tuple[int | str, ...]]] = [
        ("positions.example", positions.example, (num_sites,)),
        ("features", features, (num_sites, "L", "H")),
        ("x_0", x_0, (num_sites,)),
    ]
    if teacher is not None:
        expected.append(("teacher", teacher, (num_sites, num_states)))
    if upper is not None:
        expected.append(("upper.samples", upper.samples, (num_sites, "I")))
        expected.append(("upper.marginal", upper.marginal, (num_sites, num_states)))
    for name, tensor, shape in expected:
        agrees = tensor.dim() == len(shape) and all(
            size >= 1 if isinstance(want, str) else size == want for size, want in zip(tensor.shape, shape, strict=True)
        )
        if not agrees:
            raise ValueError(
                f"{name}: expected shape {shape} with each of L, H, I at least 1, got {tuple(tensor.shape)}"
            )


def _check_values(
    features: Tensor, output_head: OutputHead, x_0: Tensor, teacher: Tensor | None, upper: UpperSide | None
) -> None:
    if not bool(features.isfinite().all()):
        raise ValueError(f"features: expected finite values, got NaN or infinity in shape {tuple(features.shape)}")
    laws = {"teacher": teacher, "upper.marginal": None if upper is None else upper.marginal}
    for name, law_MS in laws.items():
        if law_MS is None:
            continue
        sums_M = law_MS.sum(1)
        if not bool(((sums_M - 1).abs() < 1e-3).all() and (law_MS >= 0).all()):
            raise ValueError(
                f"{name}: expected probabilities that sum to 1 over S, got shape {tuple(law_MS.shape)} with sums from "
                f"{sums_M.min():.4g} to {sums_M.max():.4g}"
            )
    indices = {"x_0": x_0} if upper is None else {"x_0": x_0, "upper.samples": upper.samples}
    for name, states in indices.items():
        if states.numel() and not 0 <= int(states.min()) <= int(states.max()) < output_head.num_states:
            raise ValueError(
                f"{name}: expected states in [0, {output_head.num_states}), got {int(states.min())} to {int(states.max())} "
                f"in shape {tuple(states.shape)}"
            )

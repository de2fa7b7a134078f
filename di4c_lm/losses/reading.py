"""What a mixture of products says of targets and of whole distributions at some positions, read in chunks of positions.

For the components ℓ_j^d(v) = log p(x_0^d = v | x_t; λ_j), forward and backward each go once over the positions, and the gradient with
respect to the logits is written down in closed form, so that nothing of shape (positions, L, S) is ever held.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from di4c_lm.processes.categorical import kl_divergence, sample_categorical
from di4c_lm.processes.denoiser import OutputHead, Positions, add_rows_, row_chunks, rows_at_once, widest

_TINY = 1e-30  # a mean of exponentials below this is taken again in the log domain, where a distribution gives the state any weight


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A mixture at the positions of B examples, in nats, differentiable; T targets and R distributions q_r at each position.

    With m^d = log E_λ exp ℓ_λ^d the logarithm of the marginal at position d.
    """

    joint: Float[Tensor, "B T"]  # log E_λ exp Σ_d ℓ_λ^d(x^d)
    product: Float[Tensor, "B T"]  # Σ_d m^d(x^d)
    divergence: Float[Tensor, "B R"]  # Σ_d KL(q_r^d ‖ m^d)
    component_divergence: Float[Tensor, " B"]  # E_λ Σ_d KL(q_0^d ‖ ℓ_λ^d); zeros unless asked for


@dataclass(frozen=True)
class PositionReading:
    """What one pass over M positions yields, differentiable with respect to the features and the output head's parameters."""

    target_log_p: Float[Tensor, "M L T"]  # ℓ_j^d at T targets a position
    divergence: Float[Tensor, "M R"]  # KL(q_r ‖ Σ_j w_j exp ℓ_j) for each of R distributions
    component_divergence: Float[Tensor, " M"]  # Σ_j w_j KL(q_0 ‖ exp ℓ_j); zeros unless asked for

    def summed(self, positions: Positions) -> Reading:
        """The reading of L products of equal weight; their logarithms, and that of their mean, are summed in float64."""
        log_L = math.log(self.target_log_p.shape[1])
        return Reading(
            joint=positions.per_example(self.target_log_p).logsumexp(1) - log_L,
            product=positions.per_example(self.target_log_p.double().logsumexp(1) - log_L),
            divergence=positions.per_example(self.divergence),
            component_divergence=positions.per_example(self.component_divergence),
        )


def read_mixture(
    features: Float[Tensor, "M L H"],
    positions: Int64[Tensor, " M"],
    output_head: OutputHead,
    targets: Int64[Tensor, "M T"],
    distributions: Sequence[Float[Tensor, "M S"]] = (),
    *,
    log_weight: Float[Tensor, "M L"] | None = None,
    component_divergence: bool = False,
    chunk_rows: int = 0,
) -> PositionReading:
    """The lean pass: read a mixture at M positions, `chunk_rows` rows of logits at a time (0: as many as the device has room for).

    `distributions` are normalised probabilities q_r that the mixture is compared with; they receive no gradient. `component_divergence`
    asks for that of each component from the first of them. `log_weight` are the log w_j, normalised over j, of the components at each
    position; without it all are 1/L. Memory: O(M·L·H + M·S + chunk_rows·S).
    """
    _check_shapes(features, positions, output_head, targets, distributions)
    assert not component_divergence or distributions
    shape = len(distributions), features.shape[1]
    plan = _Plan(output_head, positions, targets, component_divergence, *shape, chunk_rows)
    log_weight = _equal_weights(features) if log_weight is None else log_weight.to(widest(features.dtype))
    return PositionReading(*_ReadMixture.apply(plan, features, log_weight, *distributions, *output_head.parameters))


def mixture_marginals(
    features: Float[Tensor, "M L H"],
    positions: Int64[Tensor, " M"],
    output_head: OutputHead,
    *,
    log_weight: Float[Tensor, "M L"] | None = None,
    chunk_rows: int = 0,
) -> Float[Tensor, "M S"]:
    """The marginals p̄^d = Σ_j w_j exp ℓ_j^d of a mixture (L = 1: of a product), w_j = 1/L unless given, without gradient."""
    num_positions, num_lambdas, _ = features.shape
    p_MS = torch.empty(num_positions, output_head.num_states, dtype=widest(features.dtype), device=features.device)
    weight_M1L = (_equal_weights(features) if log_weight is None else log_weight).to(p_MS.dtype).exp()[:, None]
    with torch.no_grad():
        for chunk in row_chunks(num_positions, max(1, rows_at_once(output_head, chunk_rows) // num_lambdas)):
            logits_NS = output_head.logits(
                features[chunk].flatten(0, 1), positions[chunk].repeat_interleave(num_lambdas)
            )
            p_MS[chunk] = torch.bmm(weight_M1L[chunk], logits_NS.softmax(1).unflatten(0, (-1, num_lambdas)))[:, 0]
    return p_MS


def sample_rows(
    features: Float[Tensor, "N H"],
    positions: Int64[Tensor, " N"],
    output_head: OutputHead,
    u: Float64[Tensor, " N"],
    marginal: Float[Tensor, "M S"],
    into: Int64[Tensor, " N"],
    weight: float,
    *,
    chunk_rows: int = 0,
) -> Int64[Tensor, " N"]:
    """One state a row; the rows' distributions are added to `marginal[into]` times `weight`. One pass serves both, without gradient."""
    x_N = torch.empty_like(positions)
    with torch.no_grad():
        for rows in row_chunks(len(positions), rows_at_once(output_head, chunk_rows)):
            p_CS = output_head.logits(features[rows], positions[rows]).softmax(1)
            x_N[rows] = sample_categorical(p_CS, u[rows])
            add_rows_(marginal, into[rows], p_CS, weight)
    return x_N


def _check_shapes(
    features: Tensor, positions: Tensor, output_head: OutputHead, targets: Tensor, distributions: Sequence[Tensor]
) -> None:
    num_positions = len(positions)
    expected: dict[str, tuple[Tensor, tuple[int | str, ...]]] = {
        "features": (features, (num_positions, "L", "H")),
        "targets": (targets, (num_positions, "T")),
    }
    for number, q_MS in enumerate(distributions):
        expected[f"distributions[{number}]"] = q_MS, (num_positions, output_head.num_states)
    for name, (tensor, shape) in expected.items():
        if tensor.dim() != len(shape) or any(
            size != want and (isinstance(want, int) or (size == 0 and want != "T"))
            for size, want in zip(tensor.shape, shape, strict=True)
        ):
            raise ValueError(f"{name} must have shape {shape} with L and H at least 1, got {tuple(tensor.shape)}")


def _equal_weights(features: Float[Tensor, "M L H"]) -> Float[Tensor, "M L"]:
    """log 1/L for each component."""
    return features.new_full(features.shape[:2], -math.log(features.shape[1]), dtype=widest(features.dtype))


@dataclass(frozen=True)
class _Plan:
    output_head: OutputHead
    positions: Int64[Tensor, " M"]
    targets: Int64[Tensor, "M T"]
    component_divergence: bool
    num_distributions: int
    num_lambdas: int
    chunk_rows: int

    def chunks(self, num_states: int = 0) -> Iterator[slice]:
        """Of positions, such that as many logits are held at once as are allowed, of `num_states` states a row (0: of all)."""
        rows = rows_at_once(self.output_head, self.chunk_rows)
        rows = rows if num_states == 0 else rows * self.output_head.num_states // num_states
        return row_chunks(len(self.positions), max(1, rows // self.num_lambdas))

    def rows(self, features_MLH: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        return features_MLH[chunk].flatten(0, 1), self.positions[chunk].repeat_interleave(self.num_lambdas)

    def logits(self, features_MLH: Tensor, chunk: slice) -> Float[Tensor, "C L S"]:
        return self.output_head.logits(*self.rows(features_MLH, chunk)).unflatten(0, (-1, self.num_lambdas))

    def log_p(
        self, head: OutputHead, rows: tuple[Tensor, Tensor], log_norm_CL: Float[Tensor, "C L"]
    ) -> Float[Tensor, "C L K"]:
        """By a head of K of the states, its rows and their log-normalisers given."""
        return head.logits(*rows).unflatten(0, (-1, self.num_lambdas)).sub_(log_norm_CL[..., None])

    def target_index(self, chunk: slice) -> Int64[Tensor, "C L T"]:
        return self.targets[chunk][:, None].expand(-1, self.num_lambdas, -1)


class _ReadMixture(torch.autograd.Function):
    """The pass of `read_mixture`: forward by positions, whose normalisers it finds, and backward, which has them, by states too.

    Saved: features, weights, parameters, the distributions, and of each component at each position the log-normaliser, its share of
    each divergence's gradient, Σ_v q_r(v) r_j(v) (see `_logit_gradient`), and where weights are learned KL(q_0 ‖ exp ℓ_j).
    """

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, features_MLH: Tensor, log_weight_ML: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        distributions = given[: plan.num_distributions]
        num_positions, num_lambdas = features_MLH.shape[:2]
        options = {"dtype": widest(features_MLH.dtype), "device": features_MLH.device}
        target_MLT = torch.empty(num_positions, num_lambdas, plan.targets.shape[1], **options)
        divergence_MR = torch.empty(num_positions, len(distributions), **options)
        component_M = torch.zeros(num_positions, **options)
        log_norm_ML = torch.empty(num_positions, num_lambdas, **options)
        share_MRL = torch.empty(num_positions, len(distributions), num_lambdas, **options)
        each_ML = torch.zeros(num_positions, num_lambdas, **options)
        for chunk in plan.chunks():
            logits_CLS = plan.logits(features_MLH, chunk)
            q_RCS = [q_MS[chunk] for q_MS in distributions]
            log_weight_CL = log_weight_ML[chunk]
            weight_CL = log_weight_CL.exp()
            target_CLT = logits_CLS.gather(2, plan.target_index(chunk))
            mean_logit_CS = torch.bmm(weight_CL[:, None], logits_CLS)[:, 0] if plan.component_divergence else None
            if plan.component_divergence and ctx.needs_input_grad[2]:
                each_ML[chunk] = _cross_entropy(q_RCS[0], logits_CLS)
            total_CL, log_norm_CL = _exponentiate_(logits_CLS)
            target_MLT[chunk] = target_CLT - log_norm_CL[..., None]
            log_norm_ML[chunk] = log_norm_CL
            if mean_logit_CS is not None:
                mean_norm_C1 = (weight_CL * log_norm_CL).sum(1, keepdim=True)
                component_M[chunk] = kl_divergence(q_RCS[0], mean_logit_CS.sub_(mean_norm_C1))
                each_ML[chunk] += log_norm_CL - torch.special.entr(q_RCS[0]).sum(1, keepdim=True)
            if not q_RCS:
                continue
            relative_CL = weight_CL / total_CL
            mean_CS = torch.bmm(relative_CL[:, None], logits_CLS).squeeze(1)
            q_CRS = torch.stack(q_RCS, 1).to(mean_CS.dtype)
            if _has_rare(mean_CS, q_RCS):
                log_joint_CLS = plan.logits(features_MLH, chunk).add_((log_weight_CL - log_norm_CL)[..., None])
                log_mean_CS = log_joint_CLS.logsumexp(1)
                share_MRL[chunk] = torch.bmm(q_CRS, log_joint_CLS.softmax(1).transpose(1, 2))
            else:
                q_CRS.div_(mean_CS.clamp_min_(_TINY)[:, None])
                share_MRL[chunk] = torch.bmm(q_CRS, logits_CLS.transpose(1, 2)).mul_(relative_CL[:, None])
                log_mean_CS = mean_CS.log_()
            for index, q_CS in enumerate(q_RCS):
                divergence_MR[chunk, index] = kl_divergence(q_CS, log_mean_CS)
        ctx.plan = plan
        ctx.save_for_backward(features_MLH, log_weight_ML, log_norm_ML, share_MRL, each_ML, *given)
        return target_MLT, divergence_MR, component_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_target_MLT, grad_divergence_MR, grad_component_M = grads
        plan: _Plan = ctx.plan
        features_MLH, log_weight_ML, log_norm_ML, share_MRL, each_ML, *given = ctx.saved_tensors
        distributions, parameters = given[: plan.num_distributions], given[plan.num_distributions :]
        features_grad_MLH = torch.empty_like(features_MLH)
        parameter_grads = [
            torch.zeros_like(p, dtype=widest(p.dtype)) if needed else None
            for p, needed in zip(parameters, ctx.needs_input_grad[3 + len(distributions) :], strict=True)
        ]
        blamed_ML = -(share_MRL * grad_divergence_MR[..., None]).sum(1)
        on_component_ML = -grad_component_M[:, None] * log_weight_ML.exp()
        # d target / d logits = onehot - p, d component_divergence / d logits = w (p - q).
        lost_ML = blamed_ML + grad_target_MLT.sum(2) + on_component_ML
        pieces = list(plan.output_head.pieces(parameter_grads))
        for chunk in plan.chunks(max(piece.states.stop - piece.states.start for piece in pieces)):
            rows = plan.rows(features_MLH, chunk)
            total_NH = torch.zeros_like(rows[0], dtype=log_norm_ML.dtype)
            for piece in pieces:
                q_RCK = [q_MS[chunk, piece.states] for q_MS in distributions]
                blame_RCK = [q_CK * -grad_divergence_MR[chunk, r, None] for r, q_CK in enumerate(q_RCK)]
                make_log_p = partial(plan.log_p, piece.head, rows, log_norm_ML[chunk])
                grad_CLK = _logit_gradient(make_log_p, log_weight_ML[chunk], blame_RCK, lost_ML[chunk])
                if plan.component_divergence:
                    grad_CLK += q_RCK[0][:, None] * on_component_ML[chunk][..., None]
                _add_targets_(grad_CLK, plan.target_index(chunk) - piece.states.start, grad_target_MLT[chunk])
                total_NH += piece.head.vjp(*rows, grad_CLK.flatten(0, 1), piece.parameter_grads)
            features_grad_MLH[chunk] = total_NH.view_as(features_MLH[chunk])
        cast = [None if g is None else g.to(p.dtype) for g, p in zip(parameter_grads, parameters, strict=True)]
        nothing = [None] * len(distributions)
        return None, features_grad_MLH, blamed_ML - on_component_ML * each_ML, *nothing, *cast


def _exponentiate_(logits_CLS: Float[Tensor, "C L S"]) -> tuple[Float[Tensor, "C L"], Float[Tensor, "C L"]]:
    """Of the exponentials that `logits_CLS` becomes, less their greatest, the sums; and the log-normalisers. One exponential a logit."""
    top_CL1 = logits_CLS.amax(2, keepdim=True)
    total_CL = logits_CLS.sub_(top_CL1).exp_().sum(2)
    return total_CL, total_CL.log() + top_CL1.squeeze(2)


def _cross_entropy(q_CS: Float[Tensor, "C S"], logits_CLS: Float[Tensor, "C L S"]) -> Float[Tensor, "C L"]:
    """-Σ_v q(v) logit_j(v) of each component."""
    return -torch.bmm(q_CS.to(logits_CLS.dtype)[:, None], logits_CLS.transpose(1, 2))[:, 0]


def _has_rare(mean_CS: Float[Tensor, "C S"], weights_CS: Sequence[Float[Tensor, "C S"]]) -> bool:
    """Whether a state that some distribution gives weight to has underflowed in every component."""
    rare_CS = mean_CS < _TINY
    return bool(rare_CS.any()) and any(bool((rare_CS & (weight_CS != 0)).any()) for weight_CS in weights_CS)


def _logit_gradient(
    make_log_p: Callable[[], Float[Tensor, "C L K"]],
    log_weight_CL: Float[Tensor, "C L"],
    blames_CK: Sequence[Float[Tensor, "C K"]],
    lost_CL: Float[Tensor, "C L"],
) -> Float[Tensor, "C L K"]:
    """b(w) r_j(w) - lost_j p_j(w) at K of the states w, for b the sum of `blames_CK` and p̄ = Σ_j w_j p_j. Holds one (C, L, K).

    Where `lost` holds Σ_v b(v) r_j(v), over all states, that is Σ_v b(v) d log p̄(v) / d logits_j(w): d log p̄(v) / d logits_j(w) =
    r_j(v) (1[v = w] - p_j(w)) with r_j(v) = w_j p_j(v) / p̄(v) the responsibility of component j. The sum is d / d log w_j of the same.
    """
    p_CLK = make_log_p().exp_()
    if not blames_CK:
        return p_CLK.mul_(-lost_CL[..., None])
    blame_CK = sum(blames_CK[1:], start=blames_CK[0])
    weight_CL = log_weight_CL.exp()
    mean_CK = torch.bmm(weight_CL[:, None], p_CLK)[:, 0]
    if _has_rare(mean_CK, blames_CK):
        respons_CLK = make_log_p().add_(log_weight_CL[..., None]).softmax(1).mul_(blame_CK[:, None])
        return respons_CLK.sub_(p_CLK.mul_(lost_CL[..., None]))
    ratio_CK = blame_CK / mean_CK.clamp_min_(_TINY)
    for p_CK, weight_C, lost_C in zip(p_CLK.unbind(1), weight_CL.unbind(1), lost_CL.unbind(1), strict=True):
        p_CK.mul_(ratio_CK * weight_C[:, None] - lost_C[:, None])
    return p_CLK


def _add_targets_(
    grad_CLK: Float[Tensor, "C L K"], index_CLT: Int64[Tensor, "C L T"], weight_CLT: Float[Tensor, "C L T"]
) -> None:
    """Add the weights at the targets among K states, whose indices are counted from the first of these."""
    last = grad_CLK.shape[2] - 1
    here_CLT = (index_CLT >= 0) & (index_CLT <= last)
    grad_CLK.scatter_add_(2, index_CLT.clamp(0, last), weight_CLT * here_CLT)

"""`lm_sampling`: noise schedule, times of training, one step and whole trajectories of the published samplers, on their uniforms."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical_fp32
from di4c_lm.processes.masked import LogLinear, MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.ancestral import legacy_step, posterior_weights, tweedie_weights
from di4c_lm.samplers.grids import published_grid
from di4c_lm.samplers.trajectory import Calls, Decoding, Trajectory
from tests.parity import lm_dit
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("logits", "x", "grid_t", "samplet_u", "pair_t", "pair_dt", "u", "traj_*_u", "traj_*_z")
_EXACT = Tolerance()
_VALUES = Tolerance(atol=1e-6, rtol=2e-6)
_POSTERIOR = Tolerance(atol=1e-7, rtol=2e-6)
_LOG_P = Tolerance(atol=1e-5, rtol=1e-7)
_TWEEDIE = Tolerance(atol=2e-6, rtol=1e-5)
_NETWORKS = {"plain": "lm_dit", "di4c": "lm_dit_di4c"}
_SAMPLERS = {"ancestral": posterior_weights, "analytic": tweedie_weights}


class StoredUniforms(KeyedRng):
    """Chance as the file recorded it: the slices in the order in which a sampler asks for them."""

    def __init__(self, slices: list[Tensor]) -> None:
        self._slices = iter(slices)

    def uniform(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """The next slice, whose shape must be the one asked for."""
        stored = next(self._slices)
        if tuple(stored.shape) != shape:
            raise ValueError(f"the file holds uniforms of shape {tuple(stored.shape)}, the sampler asks for {shape}")
        return stored.double().to(device)


def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    process = MaskedProcess(golden.meta["mask_index"], LogLinear(golden.meta["noise_eps"]))
    yield Computed("log_p_subs", process.constrain(golden.tensor("logits"), golden.tensor("x")), _LOG_P)
    yield from _schedule(golden, LogLinear(golden.meta["noise_eps"]))
    yield from _training_times(golden, LogLinear(golden.meta["noise_eps"]))
    for number in range(len(golden.meta["pairs"])):
        yield from _one_step(golden, process, number)
    for name in _NETWORKS:
        for sampler in _SAMPLERS:
            yield _trajectory(golden, name, sampler)


def _schedule(golden: Golden, noise: LogLinear) -> Iterator[Computed]:
    t = golden.tensor("grid_t")
    yield Computed("grid_sigma", noise.sigma(t), _VALUES)
    yield Computed("grid_dsigma", noise.rate(t), _VALUES)
    yield Computed("grid_move_chance", noise.mask_prob(t), _VALUES)
    for label, time in (("T0", t), (f"T{golden.meta['T']}", _shifted(t, golden.meta["T"]))):
        yield Computed(f"grid_{label}_conditioning", noise.sigma(time)[:, None], _VALUES)
        yield Computed(f"grid_{label}_move_chance", noise.mask_prob(time)[:, None], _VALUES)


def _training_times(golden: Golden, noise: LogLinear) -> Iterator[Computed]:
    """The published t: on the grid of T steps, shifted up by one, and once more where it becomes a noise level."""
    u, T, delta, low = (golden.tensor("samplet_u"), golden.meta["T"], golden.meta["delta"], golden.meta["sampling_eps"])
    high = _shifted(delta + (1 - delta) * u, T)
    yield Computed("samplet_t_low", _shifted(u * delta, T), _VALUES)
    yield Computed("samplet_t_high", high, _VALUES)
    log_uniform = low * torch.exp(u * (math.log(1 - low) - math.log(low)))
    yield Computed("samplet_t_logunif", log_uniform, _VALUES)
    yield Computed(f"T{T}_conditioning_of_samplet_high", noise.sigma(_shifted(high, T))[:, None], _VALUES)


def _shifted(t: Tensor, num_steps: int) -> Tensor:
    return (t * num_steps).floor() / num_steps + 1 / num_steps


def _one_step(golden: Golden, process: MaskedProcess, number: int) -> Iterator[Computed]:
    """Posterior, probabilities of the analytic step, and what the stored uniforms draw from them."""
    x, u, name = golden.tensor("x"), golden.tensor("u"), f"p{number}"
    num_states, masked = u.shape[-1], x == process.mask_id
    t = golden.tensor("pair_t")[number]
    s = t - golden.tensor("pair_dt")[number]
    log_p_NS = process.constrain(golden.tensor("logits"), x).flatten(0, 1)
    q_NS = posterior_weights(log_p_NS, process, t.double(), s.double())
    drawn = sample_categorical_fp32(q_NS, u.flatten(0, 1)).view(x.shape)
    tokens_NS = q_NS.clone()
    tokens_NS[:, process.mask_id] = 0
    likeliest = tokens_NS.argmax(1).view(x.shape)
    yield Computed(f"{name}_q_xs", q_NS.view(u.shape), _POSTERIOR)
    yield Computed(f"{name}_cond", _sigma(process, t).expand(len(x)), _VALUES)
    yield Computed(f"{name}_sampled", drawn, _EXACT)
    yield Computed(f"{name}_x_next", torch.where(masked, drawn, x), _EXACT)
    yield Computed(f"{name}_x_denoise", torch.where(masked, likeliest, x), _EXACT)
    weights = tweedie_weights(log_p_NS, process, t, s).view(u.shape)
    # A visible token is certain: no step changes it.
    certain = torch.nn.functional.one_hot(x, num_states).float()
    weights = torch.where(masked[..., None], weights, certain)
    yield Computed(f"{name}_analytic_cond", torch.zeros(len(x)), _EXACT)
    yield Computed(f"{name}_analytic_probs", weights, _TWEEDIE)
    drawn = sample_categorical_fp32(weights.flatten(0, 1), u.flatten(0, 1)).view(x.shape)
    yield Computed(f"{name}_analytic_x_next", torch.where(masked, drawn, x), _EXACT)


def _sigma(process: MaskedProcess, t: Tensor) -> Tensor:
    """Total noise at t, as the network would be told."""
    return -torch.log1p(-process.schedule.mask_prob(t))


def _trajectory(golden: Golden, name: str, sampler: str) -> Computed:
    """The tokens before and after each step of the published loop; the network's file ends as the case's own does."""
    variant = golden.path.stem.removeprefix("lm_sampling")
    network = lm_dit.load(Golden(golden.path.with_name(f"{_NETWORKS[name]}{variant}.npz")))
    label = f"traj_{name}_{sampler}"
    u_KBDS, steps = golden.tensor(f"{label}_u"), golden.meta["steps"]
    slices: list[Tensor] = []
    for step in range(steps):
        if network.has_latents:
            slices.append(golden.tensor(f"{label}_z")[step][:, None, None])
        slices.extend(u_KBDS[step].unbind(1))
    x = torch.full(u_KBDS.shape[1:3], network.mask_id)
    trajectory = Trajectory(
        process=MaskedProcess(network.mask_id),
        times=published_grid(steps),
        decoding=Decoding(noise="legacy_fp32"),
        rng=StoredUniforms(slices),
        calls=Calls(network),
        fixed_BD=torch.zeros_like(x, dtype=torch.bool),
    )
    states: list[Any] = [x]
    with torch.no_grad():
        for t, s in pairwise(trajectory.times[:-1]):
            states.append(legacy_step(trajectory, states[-1], t, s, _SAMPLERS[sampler], network_time=t))
    return Computed(f"{label}_x", torch.stack(states), _EXACT)

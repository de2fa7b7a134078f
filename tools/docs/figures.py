"""What the figures of "How it works" show, computed. Axes: N samples, L components, D positions, S states."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.losses.di4c import consistency_term, correlation
from di4c_lm.losses.reading import Reading
from di4c_lm.samplers.grids import uniform_grid

FIRST, SECOND = ("New", "San", "Los"), ("York", "Diego", "Angeles")
CITIES = torch.tensor([[0.38, 0.01, 0.01], [0.01, 0.28, 0.01], [0.01, 0.01, 0.28]], dtype=torch.float64)
STUDY = MarkovChain.random(12, 12, sharpness=2, seed=0)  # of the kind that the Markov studies learn
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
APART = (0.05, 0.2, 0.5, 1.0, 1.5)
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Products:
    """A mixture of L products of D categorical distributions."""

    weight: Float[Tensor, " L"]
    state: Float[Tensor, "L D S"]

    def joint(self, x: Int64[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """log E_λ Π_d p^d(x^d | λ)."""
        return (self.components(x) + self.weight.log()).logsumexp(1)

    def product(self, x: Int64[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Σ_d log E_λ p^d(x^d | λ)."""
        marginal_DS = (self.weight[:, None, None] * self.state).sum(0)
        return marginal_DS.log()[torch.arange(x.shape[1]), x].sum(1)

    def components(self, x: Int64[Tensor, "N D"]) -> Float[Tensor, "N L"]:
        """Σ_d log p^d(x^d | λ) of every component."""
        return self.state.log()[:, torch.arange(x.shape[1]), x].sum(2).T


def fitted(
    x: Int64[Tensor, "N D"], weight: Float[Tensor, " N"], *, components: int, states: int, seed: int, rounds: int
) -> Products:
    """The mixture that `rounds` of expectation and maximisation find for weighted samples."""
    rng = torch.Generator().manual_seed(seed)
    one_hot_NDS = torch.nn.functional.one_hot(x, states).double()
    share_NL = torch.rand(len(x), components, generator=rng, dtype=torch.float64).softmax(1)
    if components > 1:
        share_NL = torch.nn.functional.one_hot(torch.randint(components, (len(x),), generator=rng), components).double()
    found = Products(torch.full((components,), 1 / components, dtype=torch.float64), torch.empty(0, 0, 0))
    for _ in range(rounds):
        held_NL = share_NL * weight[:, None]
        count_LDS = torch.einsum("nl,nds->lds", held_NL, one_hot_NDS) + 1e-6
        found = Products(
            (held_NL.sum(0) + 1e-9) / (held_NL.sum() + components * 1e-9), count_LDS / count_LDS.sum(-1, keepdim=True)
        )
        share_NL = (found.components(x) + found.weight.log()).softmax(1)
    return found


def two_tokens(components: int) -> tuple[Float[Tensor, "S S"], float]:
    """The best of 8 mixtures of so many products for the two words of a city: its table, and KL(cities ‖ mixture) in nats."""
    x_ND = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    weight_N = CITIES.flatten()
    best = max(
        (fitted(x_ND, weight_N, components=components, states=3, seed=seed, rounds=100) for seed in range(8)),
        key=lambda one: float((weight_N * one.joint(x_ND)).sum()),
    )
    joint_N = best.joint(x_ND)
    return joint_N.exp().view(3, 3), float((weight_N * (weight_N.log() - joint_N)).sum())


def captured(components: int, *, chain: MarkovChain = STUDY, samples: int = 20_000) -> float:
    """Nats of correlation, -E corr(x), that a mixture of so many products fitted to the chain's samples holds on fresh ones."""
    train_ND, fresh_ND = (chain.sample(samples, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    weight_N = torch.full((samples,), 1 / samples, dtype=torch.float64)
    found = fitted(train_ND, weight_N, components=components, states=chain.num_states, seed=0, rounds=40)
    return -float(correlation(found.joint(fresh_ND), found.product(fresh_ND)).mean())


def entropies(chain: MarkovChain) -> Float[Tensor, "K K"]:
    """H(x^d | its nearest known neighbours, a to the left and b to the right), at [a, b]; 0 stands for none, of a stationary chain."""
    powers = [torch.eye(chain.num_states, dtype=torch.float64)]
    for _ in range(1, chain.length):
        powers.append(powers[-1] @ chain.transition_SS)
    found = torch.zeros(chain.length, chain.length, dtype=torch.float64)
    for a in range(chain.length):
        for b in range(chain.length):
            left = powers[a] if a else chain.initial_S.expand(1, -1)  # p(x | what is known to the left)
            weight = chain.initial_S if a else torch.ones(1, dtype=torch.float64)
            right = powers[b] if b else torch.ones(chain.num_states, 1, dtype=torch.float64)
            joint = weight[:, None, None] * left[:, :, None] * right[None]  # (left, x, right)
            given = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
            found[a, b] = -(joint * given.clamp(min=1e-300).log()).sum()
    return found


def missed(steps: int, *, chain: MarkovChain = STUDY, patterns: int = 4000) -> float:
    """KL(chain ‖ samples) in nats of a perfect teacher that predicts the positions of a step independently, in so many equal steps.

    Each position is revealed in a step of its own chance, as the ancestral sampler does; of a step's positions the teacher knows everything
    but each other. The expectation is over `patterns` of which position comes when.
    """
    entropy = entropies(chain)
    whole = float(entropy[0, 0] + (chain.length - 1) * entropy[1, 0])
    edges = uniform_grid(steps).flip(0)
    rng = torch.Generator().manual_seed(steps)
    when_ND = torch.bucketize(1 - torch.rand(patterns, chain.length, generator=rng, dtype=torch.float64), edges)
    step_ND = -when_ND  # the first to be revealed is at the highest times
    total = 0.0
    for row in step_ND.tolist():
        for d, own in enumerate(row):
            a = next((k for k in range(1, d + 1) if row[d - k] < own), 0)
            b = next((k for k in range(1, chain.length - d) if row[d + k] < own), 0)
            total += float(entropy[a, b])
    return total / patterns - whole


def gradient_spread(apart: float, *, control_variate: bool, draws: int = 150) -> float:
    """Standard deviation of the consistency term's gradient over draws of four x̂, of a student of 8 components on 12 positions of 6 states.

    The logits of its components lie `apart` from their common part, those of the target by 1.
    """
    rng = torch.Generator().manual_seed(0)
    shared_DS, noise_LDS, other_LDS = (
        torch.randn(*shape, generator=rng).double() for shape in ((12, 6), (8, 12, 6), (8, 12, 6))
    )
    logits_LDS = (shared_DS + apart * noise_LDS).requires_grad_()
    target_LDS = (shared_DS + other_LDS).softmax(-1)
    upper_DS, none = target_LDS.mean(0), torch.zeros(1, dtype=torch.float64)
    gradients = []
    for _ in range(draws):
        component_I = torch.randint(8, (4,), generator=rng)
        x_ID = torch.multinomial(target_LDS[component_I].flatten(0, 1), 1, generator=rng).view(4, 12)
        student = Products(torch.full((8,), 1 / 8, dtype=torch.float64), logits_LDS.softmax(-1))
        divergence = (upper_DS * (upper_DS.log() - student.state.mean(0).log())).sum()
        reading = Reading(
            joint=torch.cat([none, student.joint(x_ID)])[None],
            product=torch.cat([none, student.product(x_ID)])[None],
            divergence=divergence.expand(1, 2),
            component_divergence=none,
        )
        loss = consistency_term(reading, control_variate=control_variate).sum()
        gradients.append(torch.autograd.grad(loss, logits_LDS)[0].flatten())
    return math.sqrt(float(torch.stack(gradients).var(0).sum()))


# The figures


_INK, _GREY = "#2b2f36", "#6b7280"
_COLOURS = ("#3b6fb6", "#d9603b", "#2f9e78", "#8e5bb5")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def _dress(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)


def draw_two_tokens() -> Any:
    """The cities, the product of their marginals, and mixtures of two and of three products."""
    tables = {"the data": (CITIES, 0.0)}
    for components in (1, 2, 3):
        table, nats = two_tokens(components)
        tables["product of the marginals" if components == 1 else f"mixture, L = {components}"] = (table, nats)
    figure = _figure(10.4, 3.2)
    for axes, (title, (table, nats)) in zip(figure.subplots(1, 4), tables.items(), strict=True):
        axes.imshow(table.numpy(), cmap="Blues", vmin=0, vmax=0.45)
        for i in range(3):
            for j in range(3):
                colour = "white" if table[i, j] > 0.25 else _INK
                axes.text(j, i, f"{float(table[i, j]):.2f}", ha="center", va="center", color=colour, fontsize=10)
        axes.set_xticks(range(3), SECOND, fontsize=8)
        axes.set_yticks(range(3), FIRST, fontsize=8)
        axes.tick_params(length=0, colors=_INK)
        axes.set_title(title, fontsize=10.5, color=_INK)
        axes.set_xlabel("" if title == "the data" else f"{nats:.2f} nats from the data", color=_GREY, fontsize=9)
    return figure


def draw_steps() -> Any:
    """What a perfect teacher that predicts positions independently misses, by the number of steps."""
    figure = _figure(6.2, 3.6)
    axes = figure.subplots()
    values = [missed(steps) for steps in STEPS]
    axes.plot(STEPS, values, marker="o", color=_COLOURS[0], linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(STEPS, [str(one) for one in STEPS])
    _dress(axes, "sampling steps", "nats a sequence that the samples miss")
    return figure


def draw_components() -> Any:
    """What mixtures of products hold of a chain's correlation, beside all there is."""
    figure = _figure(6.2, 3.6)
    axes = figure.subplots()
    axes.axhline(missed(1), color=_COLOURS[2], linestyle=(0, (5, 3)), label="all there is")
    held = [captured(one) for one in COMPONENTS]
    label = "one λ a sequence: fitted mixture of L products"
    axes.plot(COMPONENTS, held, marker="o", color=_COLOURS[1], linewidth=2, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(COMPONENTS, [str(one) for one in COMPONENTS])
    axes.legend(frameon=False, fontsize=9, loc="center left")
    _dress(axes, "L, components", "nats of correlation held")
    return figure


def draw_control_variate() -> Any:
    """How much the consistency term's gradient scatters with and without the control variate."""
    figure = _figure(6.2, 3.6)
    axes = figure.subplots()
    labels = {False: "plain log-likelihood", True: "with the control variate"}
    for colour, (used, label) in zip(_COLOURS, labels.items(), strict=False):
        spread = [gradient_spread(one, control_variate=used) for one in APART]
        axes.plot(APART, spread, marker="o", color=colour, linewidth=2, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    _dress(axes, "how far apart the student's components are", "standard deviation of the gradient")
    return figure


def measured(result: dict[str, Any], metric: str) -> dict[str, tuple[list[int], list[float]]]:
    """A metric of a result file against steps, by model."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in result["rows"]:
        if row["steps"] and row.get(metric) is not None:
            steps, values = found.setdefault(row["model"], ([], []))
            steps.append(row["steps"])
            values.append(row[metric])
    return found


def draw_markov(codes: dict[str, Any], chain: dict[str, Any]) -> Any:
    """What was measured on the Markov chain: the teacher, latent codes and the class chain, beside the data's own figure."""
    figure = _figure(6.2, 3.6)
    axes = figure.subplots()
    lines = {
        "teacher": measured(codes, "nll")["teacher"],
        "latent codes": measured(codes, "nll")["student"],
        "class chain": measured(chain, "nll")["student"],
    }
    (data,) = [row["nll"] for row in codes["rows"] if row["model"] == "data"]
    ticks: Sequence[int] = lines["teacher"][0]
    for colour, (label, (steps, values)) in zip(_COLOURS, lines.items(), strict=False):
        axes.plot(steps, values, marker="o", color=colour, linewidth=2, label=label)
    axes.axhline(data, color=_GREY, linestyle=(0, (5, 3)), label="the data itself")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(one) for one in ticks])
    axes.legend(frameon=False, fontsize=9)
    _dress(axes, "sampling steps", "-log p of the samples under the chain, nats")
    return figure

"""What the figures show is computed: the laws it must keep, and that every figure is drawn, committed and shown."""

import math
from pathlib import Path

import pytest
import torch

from di4c_lm.data.text.synthetic import MarkovChain
from tools import draw_figures
from tools.docs import figures
from tools.docs.figures import CITIES, STUDY, captured, entropies, gradient_spread, missed, two_tokens
from tools.docs.results import ROOT

SMALL = MarkovChain.random(3, 4, sharpness=2, seed=1)


def total_correlation(chain: MarkovChain) -> float:
    """By enumeration."""
    x_ND = torch.cartesian_prod(*[torch.arange(chain.num_states)] * chain.length)
    log_p_N = chain.log_prob(x_ND)
    log_product_N = chain.marginals().log()[torch.arange(chain.length), x_ND].sum(1)
    return float((log_p_N.exp() * (log_p_N - log_product_N)).sum())


def test_mixtures_of_enough_products_hold_the_cities() -> None:
    product, nats = two_tokens(1)
    torch.testing.assert_close(product, CITIES.sum(1, keepdim=True) * CITIES.sum(0, keepdim=True), atol=1e-4, rtol=0)
    assert nats > two_tokens(2)[1] > two_tokens(3)[1] and two_tokens(3)[1] < 1e-3


def test_one_step_misses_the_total_correlation_and_many_steps_little() -> None:
    assert missed(1, chain=SMALL, patterns=10) == pytest.approx(total_correlation(SMALL), abs=1e-9)
    values = [missed(steps, chain=SMALL, patterns=2000) for steps in (1, 2, 4, 64)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.06 * values[0]


def test_entropies_given_neighbours_are_those_of_the_distribution() -> None:
    x_ND = torch.cartesian_prod(*[torch.arange(3)] * 4)
    p_N = SMALL.log_prob(x_ND).exp()
    joint = torch.zeros(3, 3, 3, dtype=torch.float64).index_put_(tuple(x_ND[:, [0, 1, 3]].T), p_N, accumulate=True)
    expected = -(joint * (joint / joint.sum(1, keepdim=True)).log()).sum()
    assert float(entropies(SMALL)[1, 2]) == pytest.approx(float(expected), abs=1e-9)


def test_components_hold_more_and_never_all() -> None:
    held = [captured(one, samples=2000) for one in (1, 2, 4)]
    assert abs(held[0]) < 1e-6 and held[0] < held[1] < held[2] < missed(1, chain=STUDY, patterns=1)


def test_the_control_variate_takes_noise_away_most_of_all_at_the_start() -> None:
    young, grown = (
        gradient_spread(one, control_variate=True, draws=40) / gradient_spread(one, control_variate=False, draws=40)
        for one in (0.05, 1.0)
    )
    assert young < 0.3 and young < grown < 1 and math.isfinite(grown)


def test_every_figure_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("STEPS", (1, 2)), ("COMPONENTS", (1, 2)), ("APART", (0.5,))):
        monkeypatch.setattr(figures, name, few)
    assert draw_figures.main([f"out={tmp_path}"]) == 0
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert drawn.keys() == {f"{name}.svg" for name in draw_figures.FIGURES}
    for name, text in drawn.items():
        committed = (draw_figures.FOLDER / name).read_text(encoding="utf-8")
        pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "how_it_works").glob("*.md")]
        assert "<svg" in committed and "<svg" in text and any(f"(figures/{name})" in page for page in pages)


def test_the_committed_table_of_cities_is_the_one_that_is_computed() -> None:
    shown = (draw_figures.FOLDER / "two_tokens.svg").read_text(encoding="utf-8")
    for components in (1, 2, 3):
        assert f"{two_tokens(components)[1]:.2f} nats from the data" in shown

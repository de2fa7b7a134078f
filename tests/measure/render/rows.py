"""Rows as a measurement makes them."""

from typing import Any


def row(model: str, steps: int, gen_ppl: float = 20.0) -> dict[str, Any]:
    return {
        "model": model,
        "steps": steps,
        "nfe": float(steps),
        "gen_ppl": gen_ppl,
        "gen_ppl_low": gen_ppl * 0.9,
        "gen_ppl_high": gen_ppl * 1.1,
        "entropy": 3.5,
        "entropy_low": 3.4,
        "entropy_high": 3.6,
        "num_samples": 8,
    }


ROWS = [row("data", 0), *(row(name, n, 1000.0 / n) for name in ("teacher", "student") for n in (1, 2, 4))]
COMPARISON = {
    "metric": "gen_ppl",
    "of": "student",
    "minus": "teacher",
    "steps": 4,
    "difference": -3.25,
    "difference_low": -4.0,
    "difference_high": -2.0,
    "p_value": 0.012,
    "detectable": 1.5,
}

"""A training step at the paper's size: the largest batch, its speed, and the share of the matrix rate."""

from typing import Any

import torch

from di4c_lm.runs.bench import loss
from di4c_lm.runs.bench.gpu.trial import Found, Row, attempt, half_precision, matrix_rate, sized, teraflops

_LARGEST = 128


def measure(device: torch.device, *, scale: float, compiled: bool) -> Found:
    """Rows of Di4C's step at 12 x 768, D = 1,024, S = 50,258 and L = 16, times `scale`.

    `lean` is what trains, `plain` the published way. With `compiled` the lean way is measured through torch.compile too.
    """
    dtype = half_precision(device)
    rate = matrix_rate(device, dtype)
    yield "matrix_rate", rate
    heads = sized(12, scale, 2)
    sizes: dict[str, Any] = {
        "D": sized(1024, scale, 8),
        "L": sized(16, scale, 2),
        "S": sized(50_258, scale, 50),
        "H": heads * sized(64, min(1.0, 4 * scale), 8, 2),
        "blocks": sized(12, scale, 2),
        "heads": heads,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }
    yield "sizes", sizes

    def step(way: str, batch: int, *, repeat: int = 3, compiled: bool = False) -> Row:
        def run(repeat: int, *, compiled: bool) -> Row:
            return loss.measure(way, loss.Settings(**sizes, B=batch, repeat=repeat, compile=compiled))

        found = run(repeat, compiled=compiled)
        products = teraflops(lambda: run(1, compiled=False))
        return {
            "batch": batch,
            "seconds": found["seconds"],
            "tokens_per_s": batch * sizes["D"] / found["seconds"],
            "peak_gib": found["peak_gib"],
            "peak_gib_above_models": found["peak_gib_above_models"],
            "teraflops": products,
            "share_of_matrix_rate": products / found["seconds"] / rate["teraflops"],
            "phases": found["phases"],
        }

    def fits(batch: int) -> Row:
        return attempt(lambda: {"peak_gib": loss.measure("lean", loss.Settings(**sizes, B=batch))["peak_gib"]})

    yield "lean, batch 1", attempt(lambda: step("lean", 1))
    yield "plain, batch 1", attempt(lambda: step("plain", 1))
    largest, limit, failed = 1, _LARGEST if device.type == "cuda" else 2, 0
    while largest < limit and not failed:
        failed = 2 * largest if "error" in fits(2 * largest) else 0
        largest = largest if failed else 2 * largest
    while failed - largest > 1:
        between = (largest + failed) // 2
        largest, failed = (largest, between) if "error" in fits(between) else (between, failed)
    yield "lean, largest batch", attempt(lambda: step("lean", largest))
    if compiled:
        yield "lean, largest batch, compiled", attempt(lambda: step("lean", largest, compiled=True))

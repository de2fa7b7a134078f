"""What sampling costs: network calls, seconds with their spread, tokens a second, peak memory."""

import ctypes
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from di4c_lm.measure.flow import Row
from di4c_lm.measure.text.samples import TextModel, TextRun

_MIB = 2**20


def sampling_cost(
    model: TextModel, *, steps: int, batch: int, repeats: int, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """One row: batch, nfe, tokens_per_forward, seconds, tokens_per_s, peak_mib.

    Seconds are the median, fastest and slowest of `repeats` batches after one unmeasured.

    `settings` go to `TextModel.sample_tokens`. peak_mib: on a GPU what was allocated at most; on Linux by how much the process' memory rose
    above its level before (the unmeasured batch included); elsewhere None.
    """
    device = next(model.denoiser.parameters()).device
    base = _start_peak(device)
    seconds, nfe = [], 0.0
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        _, nfe = model.sample_tokens(batch, steps, seed=seed + repeat, batch_size=batch, **settings)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    del seconds[0]
    median = statistics.median(seconds)
    return {
        "steps": steps,
        "batch": batch,
        "nfe": float(nfe),
        "tokens_per_forward": model.length / float(nfe),
        "seconds": median,
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "tokens_per_s": batch * model.length / median,
        "peak_mib": _peak_since(device, base),
    }


def cost_part(run: TextRun, settings: Any, *_: Any) -> dict[str, list[Row]]:
    """`sampling_cost` of every model, step count and batch size."""
    rows = [
        {
            "model": name,
            **sampling_cost(
                model,
                steps=steps,
                batch=batch,
                repeats=settings.cost_repeats,
                seed=settings.seeds[0],
                settings=settings.how,
            ),
        }
        for name, model in run.models.items()
        for steps in settings.steps
        for batch in settings.cost_batches
    ]
    return {"cost": rows}


def _start_peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0.0
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, or the rise above it would not show
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the mark of the highest memory starts anew
        return _highest()
    except (OSError, AttributeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak_since(device: torch.device, base: float | None) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    return None if base is None else max(0.0, _highest() - base)


def _highest() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

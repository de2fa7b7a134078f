"""What the parts share: sizes, a trial that may fail, seconds, and matrix products counted and timed."""

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from di4c_lm.runs.bench.measure import Stopwatch

Row = dict[str, Any]
Found = Iterator[tuple[str, Row]]


def sized(full: int, scale: float, least: int = 1, step: int = 1) -> int:
    """`full` times `scale`, rounded to a multiple of `step`, and at least `least`."""
    return max(least, round(full * scale / step) * step)


def half_precision(device: torch.device) -> torch.dtype:
    """Bfloat16 on a GPU; float32 on a CPU, whose bfloat16 may have no products in hardware."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def attempt(work: Callable[[], Mapping[str, Any]]) -> Row:
    """What `work` finds, or under `error` what went wrong, such as memory that ran out; the card's memory is given back before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return dict(work())
    except Exception as error:  # the other trials go on
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def fastest(work: Callable[[], object], device: torch.device, repeat: int = 3) -> float:
    """Seconds of the fastest of `repeat` runs, after one to warm up."""
    work()
    watch, seconds = Stopwatch(device), []
    for _ in range(repeat):
        watch.start("run")
        work()
        seconds.append(watch.stop()["run"])
    return min(seconds)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> Row:
    """Floating-point operations a second of the product of two square matrices, the fastest of several."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = fastest(lambda: left @ right, device, repeat=10)
    return {"size": size, "teraflops": 2 * size**3 / seconds / 1e12}


def teraflops(work: Callable[[], object]) -> float:
    """Operations of all matrix products and attention in `work`, in 10^12: those that run, recomputed ones too.

    Attention is counted where a GPU's kernels do it.
    """

    def added_in_place(_: Any, left: tuple[int, int], right: tuple[int, int], **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    in_place: Any = {torch.ops.aten.addmm_: added_in_place}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return counter.get_total_flops() / 1e12

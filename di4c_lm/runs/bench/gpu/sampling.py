"""A call in sampling: the teacher's, and with a class chain or a sequential head over the same network."""

import functools
from typing import Any

import torch

from di4c_lm.runs.bench import sampling
from di4c_lm.runs.bench.gpu.trial import Found, attempt, half_precision, sized

_BATCHES = (1, 16, 64)


def measure(device: torch.device, *, scale: float) -> Found:
    """Rows at 16 steps, 12 x 768, D = 1,024 and S = 50,258, times `scale`; `of_teacher` is the ratio of seconds at the same batch."""
    heads = sized(12, scale, 2)
    sizes: dict[str, Any] = {
        "steps": 16,
        "D": sized(1024, scale, 16),
        "S": sized(50_258, scale, 50),
        "H": heads * sized(64, min(1.0, 4 * scale), 8, 2),
        "blocks": sized(12, scale, 2),
        "heads": heads,
        "device": device.type,
        "dtype": str(half_precision(device)).removeprefix("torch."),
        "repeat": 2,
    }
    yield "sizes", sizes
    classes = {"class_chain": {"classes": sized(512, scale, 4)}}
    for batch in _BATCHES if device.type == "cuda" else _BATCHES[:2]:
        of_teacher = float("nan")
        for kind in ("teacher", "class_chain", "sequential"):
            words = {} if kind == "teacher" else {"mixture": kind, **classes.get(kind, {})}
            settings = sampling.Settings(**{**sizes, **words, "B": batch})
            way = "teacher" if kind == "teacher" else "fast"
            found = attempt(functools.partial(sampling.measure, way, settings))
            seconds = found.get("seconds_per_step", float("nan"))
            of_teacher = seconds if kind == "teacher" else of_teacher
            yield f"{kind}, batch {batch}", {**found, "of_teacher": seconds / of_teacher}

"""Tokens a second of a model that is at hand, by the number of texts sampled at once:

    di4c bench serving model=<run, folder, file or hub name> steps=8 ways=1,8,64 [--json]

Each batch size runs in a process of its own: one batch to warm up, then as many as `num_samples` take. Prompts of different lengths may
share a batch: a sequence is as long as the model's context, and positions that are given are not sampled.
"""

import functools
import time

from di4c_lm.core.settings import section, setting
from di4c_lm.domains.domain import find_run
from di4c_lm.domains.load import load
from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark


@section
class Settings(BenchSettings):
    """Tokens a second of a text model, by the number of texts sampled at once (`ways`)."""

    model: str | None = setting(None, "as `di4c sample` takes it; null: the newest run")
    outputs: str = setting("outputs", "where runs live")
    steps: int = setting(8, "network calls")
    num_samples: int = setting(64, "texts; of the larger batches at least one batch")

    WAYS = ("1", "2", "4", "8", "16", "32", "64", "128")
    BY_DEFAULT = ("1", "8", "64")

    def unused(self) -> dict[str, str]:
        """Where runs live, where a model is given."""
        return {"outputs": "where a model is given"} if self.model else {}


def measure(way: str, settings: Settings) -> dict[str, float]:
    """Tokens a second, and seconds until a batch is done. Raises `ValueError` for a model of images."""
    batch_size, device = int(way), settings.torch_device()
    model = load(settings.model or str(find_run(None, settings.outputs)), device=str(device))
    if not isinstance(model, TextModel):
        raise ValueError(f"model must be one of text, got {settings.model}, of images")
    count = max(settings.num_samples // batch_size, 1) * batch_size

    def run(num_samples: int) -> float:
        started = time.perf_counter()
        model.sample_tokens(num_samples, settings.steps, seed=0, batch_size=batch_size)  # it comes back on the CPU
        return time.perf_counter() - started

    run(batch_size)
    seconds = min(run(count) for _ in range(settings.repeat))
    return {"tokens_per_s": count * model.length / seconds, "seconds_per_batch": seconds * batch_size / count}


main = functools.partial(run_benchmark, "di4c bench serving", Settings, measure)

"""A day on a GPU in five parts, each in a process of its own and of at most ten minutes:

    di4c bench gpu_day [parts=exact,train,sample,decoder,quality] [out=gpu_day.json] [--json]
    PYTHONPATH=. python tools/gpu_day.py device=cpu scale=0.05 threads=1   # the same, small, on a CPU

It needs Python, torch and NumPy, and no network. `exact` holds losses, gradients, samples and attention against a CPU's float64;
`train` takes Di4C's step at the paper's size, `sample` the calls of teacher, class chain and sequential head; `decoder` has LLaDA's width;
`quality` is a training on a distribution that is known. A part that fails, or takes too long, says so under `error`, with what it found
before that, and the exit status is 1; the others go on.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from di4c_lm.core.compose import parse
from di4c_lm.core.files import write_json
from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.core.terminal import errors_end
from di4c_lm.runs.bench.frame import MachineSettings, print_table
from di4c_lm.runs.bench.gpu.annotations import without_jaxtyping

if TYPE_CHECKING:
    import torch

    from di4c_lm.runs.bench.gpu.trial import Found

PARTS = ("exact", "train", "sample", "decoder", "quality")
_LARGEST_ON_CPU = 0.1
_OF_TRAINING = 0.6  # of a part's minutes, at scale 1


@section
class Settings(MachineSettings):
    """Exactness, speed, memory and a training on a GPU, in parts of at most ten minutes, with torch and NumPy alone."""

    parts: str = setting(",".join(PARTS), "parts to run, with commas between")
    scale: float = setting(
        1.0, "factor on widths, lengths, layers, vocabularies and the time of training; on a CPU at most 0.1"
    )
    minutes: float = setting(10.0, "for each part; what it has found by then is kept")
    compile: bool = setting(True, "also measure the training step through torch.compile")
    out: str = setting("gpu_day.json", "file of the results, written after each part")

    def __post_init__(self) -> None:
        at_least(self, 1, "threads")
        positive(self, "scale", "minutes")
        check(self.scale <= 1, "scale", self.scale, "at most 1")
        check(set(self.chosen) <= set(PARTS), "parts", self.parts, f"some of {','.join(PARTS)}")
        check(self.out, "out", self.out, "the path of a file")

    @property
    def chosen(self) -> list[str]:
        """The parts, in order; brackets around them are let pass."""
        return self.parts.strip("[]").replace(" ", "").split(",")


def main(argv: Sequence[str]) -> int:
    """Run the parts, print a table of each, and write all as one JSON object, which `--json` prints on the last line."""
    without_jaxtyping()
    part, rest = (argv[1], argv[2:]) if argv[:1] == ["--part"] else ("", argv)
    settings = parse(Settings, rest, program="di4c bench gpu_day")
    with errors_end():
        device = settings.torch_device()
        on_cpu = device.type == "cpu"
        allowed = f"at most {_LARGEST_ON_CPU} on a CPU"
        check(not on_cpu or settings.scale <= _LARGEST_ON_CPU, "scale", settings.scale, allowed)
    if part:
        _measure_here(part, settings, device)
        return 0
    day: dict[str, Any] = {"machine": _machine(device), "scale": settings.scale, "parts": {}}
    for name in settings.chosen:
        day["parts"][name] = _measure_apart(name, rest, settings)
        _show(name, day["parts"][name])
        with errors_end():
            write_json(Path(settings.out), day)
    if settings.json:
        print(json.dumps(day))
    return int(any(_errors(name, found) for name, found in day["parts"].items()))


def found_by(part: str, settings: Settings, device: "torch.device") -> "Found":
    """What a part finds, by name, as it comes to it."""
    if part == "exact":
        from di4c_lm.runs.bench.gpu import exact

        return exact.measure(device, scale=settings.scale)
    if part == "train":
        from di4c_lm.runs.bench.gpu import train

        return train.measure(device, scale=settings.scale, compiled=settings.compile)
    if part == "sample":
        from di4c_lm.runs.bench.gpu import sampling

        return sampling.measure(device, scale=settings.scale)
    if part == "decoder":
        from di4c_lm.runs.bench.gpu import decoder

        return decoder.measure(device, scale=settings.scale)
    from di4c_lm.runs.bench.gpu import quality

    return quality.measure(device, scale=settings.scale, seconds=_OF_TRAINING * 60 * settings.minutes * settings.scale)


def _measure_here(part: str, settings: Settings, device: "torch.device") -> None:
    """Print all that is found so far as a line of JSON, again and again."""
    import torch

    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    results: dict[str, Any] = {}
    said: dict[str, Any] = {"results": results}
    try:
        for name, row in found_by(part, settings, device):
            results[name] = {key: value for key, value in row.items() if not _is_lost(value)}
            print(json.dumps(said), flush=True)
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(said), flush=True)


def _is_lost(value: object) -> bool:
    """Whether it is a number that JSON does not know."""
    return isinstance(value, float) and not math.isfinite(value)


def _measure_apart(part: str, argv: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The last that the part's process said, with its seconds, and the reason where it ended badly or was stopped."""
    command = [sys.executable, "-m", "di4c_lm", "bench", "gpu_day", "--part", part, *argv]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    started = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, end = process.communicate(timeout=60 * settings.minutes)[0], ""
        except subprocess.TimeoutExpired:
            process.kill()
            said, end = process.communicate()[0], f"stopped after {settings.minutes:g} minutes"
    if not end and process.returncode:
        end = f"ended with exit status {process.returncode}"
    lines = said.splitlines()
    found = json.loads(lines[-1]) if lines else {"results": {}}
    return {"seconds": time.monotonic() - started, **found, **({"error": end} if end else {})}


def _machine(device: "torch.device") -> dict[str, Any]:
    """The card's name and memory, and the versions."""
    import platform

    import torch

    found = {"name": platform.processor() or platform.machine(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        of_card = torch.cuda.get_device_properties(device)
        capability = f"{of_card.major}.{of_card.minor}"
        found |= {"name": of_card.name, "memory_gib": of_card.total_memory / 2**30, "capability": capability}
    return {"device": device.type, **found}


def _show(part: str, found: dict[str, Any]) -> None:
    """A table of the part: a column by name, numbers alone; errors below it."""
    print(f"\n{part}: {found['seconds']:.0f} s")
    for name, row in found["results"].items():
        numbers = {key: value for key, value in row.items() if not isinstance(value, str)}
        if numbers:
            print_table({name: numbers})
    for name, error in _errors(part, found).items():
        print(f"{name}: {error}")


def _errors(part: str, found: dict[str, Any]) -> dict[str, str]:
    """Of the trials of a part, and of the part itself, by name."""
    errors = {name: row["error"] for name, row in found["results"].items() if "error" in row}
    return errors | ({part: found["error"]} if "error" in found else {})

"""Seconds a step and tokens/s of ancestral sampling, ours against the published way:

    python tools/bench_sampling.py steps=16 B=4 D=256 S=50258 H=768 blocks=2 heads=12 threads=2 [--json]

Each way runs in a process of its own on the same weights: `fast` chooses the positions first and reads out those alone, `plain` holds
logits, softmax and float32 noise over (B, D, S). A third way, `teacher`, is `fast` without λ: `ways=fast,teacher latent=classes` tells
what λ costs. More settings: latent=none|token|codes|classes (a student with λ, which no cache helps), classes=512, repeat=1 (the fastest
trajectory counts), ways=fast,plain, device=auto|cpu|cuda. Seconds a step are those of a trajectory over `steps`. `--json`
prints one object on the last line.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmark import plain_sampling
from benchmark.apart import run_apart
from benchmark.words import split_words
from torch import nn

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample

WAYS = ("fast", "plain", "teacher")
LATENTS = ("none", "token", "codes", "classes")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """Sizes and ways, as named on the command line."""

    steps: int = 16
    B: int = 4
    D: int = 256
    S: int = 50258
    H: int = 768
    blocks: int = 2
    heads: int = 12
    threads: int = 2
    latent: str = "none"
    classes: int = 512
    repeat: int = 1
    ways: str = "fast,plain"
    device: str = "auto"

    @classmethod
    def parse(cls, assignments: list[str]) -> "Settings":
        """From key=value; raises `ValueError` for an unknown key, or a value that is impossible."""
        values: dict[str, Any] = {}
        for key, value, kind, assignment in split_words(cls, assignments):
            if kind is int and (not value.isdecimal() or int(value) < 1):
                raise ValueError(f"{assignment!r}: allowed is an integer of at least 1")
            values[key] = kind(value)
        settings = cls(**values)
        if settings.latent not in LATENTS:
            raise ValueError(f"latent={settings.latent}: allowed are {', '.join(LATENTS)}")
        if settings.device not in DEVICES or not set(settings.ways.split(",")) <= set(WAYS):
            raise ValueError(
                f"device={settings.device} ways={settings.ways}: allowed are {', '.join(DEVICES)} and {', '.join(WAYS)}"
            )
        return settings

    def assignments(self) -> list[str]:
        """What `parse` reads."""
        return [f"{key}={value}" for key, value in dataclasses.asdict(self).items()]

    def torch_device(self) -> torch.device:
        """CUDA where there is one, unless told."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)


def latent_of(settings: Settings) -> LatentConfig | None:
    """The λ path that is measured."""
    return {
        "none": None,
        "token": LatentConfig(law="uniform", path="token", inject_at=0),
        "codes": LatentConfig(law="codebook", path="head", window=1, codebook_size=16),
        "classes": LatentConfig(law="codebook", path="classes", codebook_size=settings.classes),
    }[settings.latent]


def build(settings: Settings, latent: LatentConfig | None) -> DIT:
    """A network with random weights everywhere, those beside λ's the same for all ways."""
    torch.manual_seed(0)
    model = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    network = DIT(model, num_states=settings.S, latent=latent)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    return network.to(settings.torch_device()).eval().requires_grad_(False)


def measure(way: str, settings: Settings) -> dict[str, float]:
    """Seconds a step, tokens a second and NFE of one way, in this process, after one step to warm up."""
    if settings.torch_device().type != "cuda":
        torch.set_num_threads(settings.threads)
    network = build(settings, None if way == "teacher" else latent_of(settings))
    process = MaskedProcess(network.mask_id)
    x_init = torch.full((settings.B, settings.D), network.mask_id, device=settings.torch_device())

    def fast(steps: int) -> float:
        rng = torch.Generator(settings.torch_device()).manual_seed(1)
        return sample(network, process, x_init, uniform_grid(steps), rng).nfe

    def plain(steps: int) -> float:
        torch.manual_seed(1)
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        hook = network.register_forward_pre_hook(count)
        plain_sampling.sample(network, process, x_init, steps)
        hook.remove()
        return float(calls)

    run = {"fast": fast, "plain": plain, "teacher": fast}[way]
    run(1)
    seconds, nfe = min(_timed(run, settings) for _ in range(settings.repeat))
    return {
        "seconds_per_step": seconds / settings.steps,
        "tokens_per_s": settings.B * settings.D / seconds,
        "nfe": nfe,
    }


def _timed(run: Callable[[int], float], settings: Settings) -> tuple[float, float]:
    cuda = settings.torch_device().type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    nfe = run(settings.steps)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, nfe


def print_table(results: dict[str, dict[str, float]]) -> None:
    """One column a way, and their ratio."""
    ways = list(results)
    print(f"{'':18}" + "".join(f"{way:>10}" for way in ways) + ("     ratio" if len(ways) > 1 else ""))
    for name in ("seconds_per_step", "tokens_per_s", "nfe"):
        values = [results[way][name] for way in ways]
        ratio = f"{values[0] / values[1]:10.3f}" if len(values) > 1 else ""
        print(f"{name:18}" + "".join(f"{value:10.3f}" for value in values) + ratio)


def main() -> None:
    """Measure each way and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        settings = Settings.parse(arguments.settings)
    except ValueError as error:
        parser.error(str(error))
    if arguments.way:
        print(json.dumps(measure(arguments.way, settings)))
        return
    results = {
        way: run_apart(__file__, way, settings.assignments(), threads=settings.threads)
        for way in settings.ways.split(",")
    }
    print_table(results)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()

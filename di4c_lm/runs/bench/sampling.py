"""Seconds a step and tokens/s of sampling, ours against the published way:

    di4c bench sampling steps=16 B=4 D=256 S=50258 H=768 blocks=2 heads=12 threads=2 [--json]

Each way runs in a process of its own on the same weights: `fast` chooses the positions first and reads out those alone, `plain` holds
logits, softmax and float32 noise over (B, D, S). A third way, `teacher`, is `fast` without λ: `ways=fast,teacher mixture=class_chain`
tells what λ costs. Seconds a step are those of a trajectory over `steps`, or with `at` of its one step from about that time: of `fast` and
`teacher` a sixteenth of the work. Where other processes run beside it, look at the processor's seconds.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Literal, cast

import torch

from di4c_lm.core.settings import check, section, setting, unit
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.processes.denoiser import Denoiser, predictor
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark
from di4c_lm.runs.bench.measure import randomise
from di4c_lm.runs.bench.plain import sample_text
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.left_to_right import span
from di4c_lm.samplers.trajectory import sample


@section
class Settings(BenchSettings):
    """Seconds a step and tokens/s of sampling: ours, the published way (ancestral), and ours without λ."""

    steps: int = setting(16, "sampling steps")
    at: float = setting(0.0, "time of the one step that is taken, one of `steps`, by all ways but plain; 0: all steps")
    sampler: Literal["ancestral", "left_to_right"] = setting(
        "ancestral", "which positions a step reveals, by all ways but plain"
    )
    B: int = setting(4, "sequences in a batch")
    D: int = setting(256, "positions in a sequence")
    S: int = setting(50258, "states: the vocabulary and MASK")
    H: int = setting(768, "width of the network")
    blocks: int = setting(2, "blocks of the network")
    heads: int = setting(12, "attention heads")
    mixture: Literal["none", "token", "codes", "class_chain", "sequential"] = setting(
        "none", "kind of mixture of the student that is timed; none: the teacher's kind of network"
    )
    classes: int = setting(512, "classes of a mixture=class_chain")
    matmul: Literal["same", "bf16"] = setting(
        "same",
        "type in which a mixture=class_chain multiplies for the classes' distribution: same as the network, or bf16",
    )
    candidates: int = setting(0, "likeliest states that a mixture=sequential changes; 0: all")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the networks' weights and activations")
    positions: Literal["masked", "revealed"] = setting(
        "masked", "that a mixture=sequential or class_chain samples together"
    )

    WAYS = ("fast", "plain", "teacher")
    BY_DEFAULT = ("fast", "plain")
    OLD_KEYS = {"latent=classes": "mixture=class_chain", "latent": "mixture"}

    def __post_init__(self) -> None:
        unit(self, "at")
        check(not self.at or self.at * self.steps > 1, "at", self.at, f"0, or above 1/{self.steps}, a step's length")
        check(not self.at or "plain" not in self.chosen, "at", self.at, "0 where ways has plain, or by default")

    def unused(self) -> dict[str, str]:
        """What belongs to another mixture."""
        of = {
            "classes": ("class_chain",),
            "matmul": ("class_chain",),
            "candidates": ("sequential",),
            "positions": ("sequential", "class_chain"),
        }
        return {key: f"where mixture={self.mixture}" for key, kinds in of.items() if self.mixture not in kinds}


def mixture_of(settings: Settings) -> MixtureSettings:
    """The mixture that is measured."""
    together: dict[str, Any] = {"positions": settings.positions, "freeze_backbone": False}
    match settings.mixture:
        case "class_chain":
            narrow = "bfloat16" if settings.matmul == "bf16" else "same"
            return ClassChainSettings(codebook_size=settings.classes, matmul_dtype=narrow, **together)
        case "sequential":
            return SequentialSettings(candidates=settings.candidates, **together)
        case "codes":
            return CodesSettings(window=1, codebook_size=16)
        case "token":
            return TokenSettings()
        case "none":
            return NoMixture()


def measure(way: str, settings: Settings) -> dict[str, float]:
    """Seconds a step, tokens a second and NFE of one way, in this process, after one step to warm up."""
    device = settings.torch_device()
    torch.manual_seed(0)
    model = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    mixture = NoMixture() if way == "teacher" else mixture_of(settings)
    network = mixture.fresh(DIT, model, {"num_states": settings.S})
    randomise(network).to(device, getattr(torch, settings.dtype)).eval().requires_grad_(False)
    process, calls = MaskedProcess(network.mask_id), []
    at = torch.tensor([settings.at or 1.0], dtype=torch.float64, device=device)
    x_init = torch.full((settings.B, settings.D), network.mask_id, device=device)
    network.register_forward_pre_hook(lambda *_: calls.append(1))

    def fast(steps: int) -> float:
        rng = torch.Generator(device).manual_seed(1)
        if settings.at:
            x_0 = torch.randint(settings.S - 1, x_init.shape, generator=rng, device=device)
            t_B, s_B = at.expand(settings.B), at.expand(settings.B) - 1 / settings.steps
            predict, start_B = predictor(cast(Denoiser, network)), torch.ones_like(t_B)
            with torch.no_grad():
                if settings.sampler == "left_to_right":
                    shown, needed = (
                        span(process.schedule, process.unknown(x_init), start_B, *ends)
                        for ends in ((start_B, t_B), (t_B, s_B))
                    )
                    predict(torch.where(shown, x_0, x_init), t_B, needed, rng)
                else:
                    process.reverse(process.corrupt(x_0, t_B, rng), predict, t_B, s_B, rng)
            return 1.0
        times = uniform_grid(steps)
        return sample(cast(Denoiser, network), process, x_init, times, rng, sampler=settings.sampler).nfe

    def plain(steps: int) -> float:
        torch.manual_seed(1)
        calls.clear()
        sample_text(network, process, x_init, steps)
        return float(len(calls))

    run = plain if way == "plain" else fast
    run(1)
    seconds, cpu_seconds, nfe = min(_timed(run, settings.steps, device) for _ in range(settings.repeat))
    num_steps = 1 if settings.at else settings.steps
    return {
        "seconds_per_step": seconds / num_steps,
        "cpu_seconds_per_step": cpu_seconds / num_steps,
        "tokens_per_s": settings.B * settings.D / seconds * num_steps / settings.steps,
        "nfe": nfe,
    }


def _timed(run: Callable[[int], float], steps: int, device: torch.device) -> tuple[float, float, float]:
    """Seconds by the clock, and of the processor; NFE."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started, worked = now(), time.process_time()
    nfe = run(steps)
    return now() - started, time.process_time() - worked, nfe


main = functools.partial(run_benchmark, "di4c bench sampling", Settings, measure)

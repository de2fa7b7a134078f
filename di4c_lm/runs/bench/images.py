"""Time and memory of one Di4C training step of tauLDR's U-Net without the optimiser, lean against plain:

    di4c bench images L=16 B=8 size=32 channels=3 S=256 width=128 multipliers=[1,2,2,2] blocks=2 threads=2 [--json]

The defaults are the paper's run. Each way runs in a process of its own on the same weights and the same images, at t and t - 0.005.
"""

import functools
from typing import Any

import torch

from di4c_lm.core.settings import Ints, section, setting
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.teacher_step import TeacherStep
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark
from di4c_lm.runs.bench.measure import measure_training
from di4c_lm.runs.bench.plain import image_loss

PHASES = ("teacher sampling", "student on x_u", "student on x_t", "distillation", "loss", "backward")
STEP = 0.005  # of the teacher


@section
class Settings(BenchSettings):
    """Time and memory of one Di4C training step of the U-Net: the objective that trains, and the published way."""

    L: int = setting(16, "samples of λ per image")
    B: int = setting(8, "images in a batch")
    size: int = setting(32, "rows and columns of an image")
    channels: int = setting(3, "colour channels of an image")
    S: int = setting(256, "levels of a pixel")
    width: int = setting(128, "channels of the network at its finest scale")
    multipliers: Ints = setting((1, 2, 2, 2), "channels of each scale, as factors on `width`")
    blocks: int = setting(2, "residual blocks per scale")
    inject_at: int = setting(0, "index of the residual block where λ enters")
    distil_samples: int = setting(0, "samples of λ that distil at inputs of their own; 0: L")
    consistency_samples: int = setting(0, "samples of x_u for each x_t; 0: L")
    t: float = setting(0.5, "time of x_t")
    chunk_rows: int = setting(0, "rows of logits held at once; 0: 2^23 logits on a CPU, 2^26 on a GPU")
    recompute: bool = setting(False, "recompute activations in the backward pass, in both ways")

    WAYS = ("lean", "plain")


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """Seconds, phases and memory of one way, in this process."""
    device = settings.torch_device()
    torch.manual_seed(0)
    model = UnetConfig(width=settings.width, multipliers=settings.multipliers, res_blocks=settings.blocks, dropout=0.0)
    shape = (settings.size, settings.size, settings.channels)
    sizes = {"shape": shape, "num_states": settings.S}
    mixtures = TokenSettings(inject_at=settings.inject_at), NoMixture()
    networks: list[Any] = [chosen.fresh(UNet, model, sizes) for chosen in mixtures]
    for network in networks:
        network.activation_checkpointing = settings.recompute
    shape_of_x = (settings.B, networks[0].length)
    x = torch.randint(settings.S, shape_of_x, generator=torch.Generator().manual_seed(1)).to(device)
    objective = Di4C(
        num_lambdas=settings.L,
        distil_samples=settings.distil_samples,
        consistency_samples=settings.consistency_samples,
        chunk_rows=settings.chunk_rows,
        distil_inputs="own",
        delta=0.01,
        alpha_scale=1.0,
        teacher_step=TeacherStep(distribution="log_uniform", low=0.001, high=0.01),
    )
    times, chain = (settings.t, settings.t - STEP), GaussianChain(num_states=settings.S)
    return measure_training(way, networks, chain, x, times, objective, image_loss, PHASES, settings.repeat)


main = functools.partial(run_benchmark, "di4c bench images", Settings, measure)

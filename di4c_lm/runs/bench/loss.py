"""Time and memory of one Di4C training step without the optimiser, lean against plain:

    di4c bench loss D=256 L=16 B=1 S=50258 H=768 blocks=2 heads=12 inject_at=0 threads=2 [--json]

Each way runs in a process of its own on the same weights and the same x_t.
"""

import functools
from typing import Any, Literal

import torch

from di4c_lm.core.settings import section, setting
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import AttentionBlock
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark
from di4c_lm.runs.bench.measure import measure_training
from di4c_lm.runs.bench.plain import text_loss

PHASES = ("teacher sampling", "student on x_u", "student on x_t", "loss", "backward")


@section
class Settings(BenchSettings):
    """Time and memory of one Di4C training step without the optimiser: the objective that trains, and the published way."""

    D: int = setting(256, "positions in a sequence")
    L: int = setting(16, "samples of λ per sequence")
    B: int = setting(1, "sequences in a batch")
    S: int = setting(50258, "states: the vocabulary and MASK")
    H: int = setting(768, "width of the network")
    blocks: int = setting(2, "blocks of the network")
    heads: int = setting(12, "attention heads")
    path: Literal["token", "adaln"] = setting("token", "kind of mixture: how λ enters")
    inject_at: int = setting(0, "index of the block before which λ enters")
    matmul: Literal["same", "bf16"] = setting(
        "same", "type in which the output head multiplies: same as the network, or bf16"
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the networks' weights and activations")
    compile: bool = setting(
        False, "the blocks of the lean way's networks go through torch.compile; take repeat=2 or more"
    )
    t: float = setting(0.5, "time of x_t")
    chunk_rows: int = setting(0, "rows of logits held at once; 0: 2^23 logits on a CPU, 2^26 on a GPU")

    WAYS = ("lean", "plain")


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """Seconds, phases and memory of one way, in this process."""
    device, dtype = settings.torch_device(), getattr(torch, settings.dtype)
    torch.manual_seed(0)
    model = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    mixture = (AdaLNSettings if settings.path == "adaln" else TokenSettings)(inject_at=settings.inject_at)
    networks: list[Any] = [chosen.fresh(DIT, model, {"num_states": settings.S}) for chosen in (mixture, NoMixture())]
    networks = [network.to(dtype) for network in networks]
    for network in networks:
        network.matmul_dtype = torch.bfloat16 if way == "lean" and settings.matmul == "bf16" else None
        for block in network.modules() if way == "lean" and settings.compile else ():
            if isinstance(block, AttentionBlock):
                block.compile()
    x = torch.randint(settings.S - 1, (settings.B, settings.D), generator=torch.Generator().manual_seed(1)).to(device)
    times = (settings.t, settings.t - min(1 / 1024, settings.t / 2))
    objective = Di4C(num_lambdas=settings.L, chunk_rows=settings.chunk_rows)
    process = MaskedProcess(settings.S - 1)
    return measure_training(way, networks, process, x, times, objective, text_loss, PHASES, settings.repeat)


main = functools.partial(
    run_benchmark, "di4c bench loss", Settings, measure, ratios=("seconds", "peak_gib_above_models")
)

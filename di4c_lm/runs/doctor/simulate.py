"""How long an update takes on N ranks, simulated: products by the shapes, traffic by ZeRO stage, and what of it hides behind the products.

    products   2 operations a weight and position forwards, 4 backwards, 2 more where activations or logits are made again;
               attention 4 D H a position and block forwards, twice that backwards
    traffic    2 (N - 1)/N of the gradients' bytes on stages 0 to 2: a reduce-scatter and an all-gather (Rajbhandari et al. 2020,
               section 7); on stage 3 half of that, and (N - 1)/N of all weights before each forward and each backward pass
    optimiser  each number of its share is read and written once, at the speed of memory

Not in it: the loader, the sampling of tokens, elementwise work, ranks that wait for a slower one, and CPU offload.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from di4c_lm.core.settings import at_least, check, positive, section, setting, unit
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.networks.base import block_matrices
from di4c_lm.networks.decoder import DecoderConfig
from di4c_lm.networks.dit import DitConfig
from di4c_lm.runs.doctor.plan import blank_student
from di4c_lm.training.distributed import World, sum_over_ranks

_MASKED = 0.5  # share of the positions that is masked, on average over uniform times
_BUCKET = 200e6  # bytes that travel at once
_OPTIMIZER_BYTES = 40  # moved for a number of its share: gradient, master, two moments, average, read and written


@section
class H100:
    """An H100 with NVLink, eight a machine, 400 Gb/s of network each; 45 % of its peak of products."""

    tflops: float = setting(445.0, "10^12 operations a second that a rank's products in bfloat16 reach in earnest")
    tflops_float32: float = setting(30.0, "the same in float32")
    memory_gb_s: float = setting(3350.0, "GB/s of a rank's memory")
    link_gb_s: float = setting(450.0, "GB/s from a rank to others of its machine")
    network_gb_s: float = setting(50.0, "GB/s from a rank to other machines")
    latency_us: float = setting(20.0, "µs that each message takes beside its bytes")
    ranks_per_machine: int = setting(8, "ranks of a machine")
    overlap: float = setting(0.8, "share of the backward pass behind which traffic can hide; 0 on CPUs")

    def __post_init__(self) -> None:
        positive(self, "tflops", "tflops_float32", "memory_gb_s", "link_gb_s", "network_gb_s")
        at_least(self, 0, "latency_us")
        at_least(self, 1, "ranks_per_machine")
        unit(self, "overlap")


@section
class A100(H100):
    """An A100 with NVLink, eight a machine, 200 Gb/s of network each; 45 % of its peak of products."""

    tflops: float = setting(140.0, "10^12 operations a second that a rank's products in bfloat16 reach in earnest")
    tflops_float32: float = setting(9.0, "the same in float32")
    memory_gb_s: float = setting(2039.0, "GB/s of a rank's memory")
    link_gb_s: float = setting(300.0, "GB/s from a rank to others of its machine")
    network_gb_s: float = setting(25.0, "GB/s from a rank to other machines")


@section
class Here:
    """The machine at hand: its products, its memory, and between ranks that a launcher started their sums, measured."""


CLUSTERS = {"h100": H100, "a100": A100, "here": Here}


def products(config: TextSettings, model: DitConfig | DecoderConfig, num_states: int) -> dict[str, float]:
    """Operations of a rank's micro batch over S = `num_states`: forwards without a gradient, forwards with one, and backwards."""
    student = blank_student(config, model, num_states)
    H, D, blocks, objective = model.hidden_size, config.data.length, model.num_blocks, config.objective
    positions = config.train.micro_batch_size * D
    network: Any = getattr(student, "network", student)
    frozen = network is not student and student.settings.freeze_backbone and not config.lora.rank
    inside = block_matrices(network)
    body = sum(p.numel() for name, p in network.named_parameters() if name in inside) / blocks
    own = sum(p.numel() for name, p in student.named_parameters() if p.ndim == 2 and student.learns_apart(name))
    components = student.num_components(getattr(objective, "num_lambdas", 1))
    rows, calls = student.rows_by_block(components), student.num_calls(components)
    head = 2.0 * H * num_states * _MASKED
    attention = 4.0 * D * H
    alone = positions * (blocks * (2.0 * body + attention) + head)
    through = positions * (sum(rows) * (2.0 * body + attention) + calls * head)
    beside = positions * _MASKED * (2.0 * own + (attention if own else 0.0))
    consistency = getattr(objective, "consistency_weight", 0.0) > 0
    without = (alone if objective.needs_teacher and not frozen else 0.0) + (through + beside if consistency else 0.0)
    again = through + beside if config.train.activation_checkpointing else positions * calls * head
    trained = beside + positions * calls * head if frozen else through + beside
    return {"without_gradient": without, "forwards": through + beside, "backwards": 2.0 * trained + again}


def step_time(
    cluster: H100, config: TextSettings, work: dict[str, float], counts: dict[str, int], ranks: int
) -> dict[str, float]:
    """Seconds of an update on `ranks` ranks, by part; traffic is what does not hide. Tokens/s are those of all ranks together."""
    stage, wide = config.zero.stage, config.train.dtype == "float32"
    rate = 1e12 * (cluster.tflops_float32 if wide else cluster.tflops)
    width, passes = (4 if wide else 2), config.train.gradient_accumulation
    of_products = passes * sum(work.values()) / rate
    backward = passes * work["backwards"] / rate
    trained, weights = width * counts["trained"], width * (counts["trained"] + counts["frozen"])

    of_gradients, of_weights = (_collective(cluster, size, ranks) for size in (trained, weights))
    by_stage = {2: (passes + 1) * of_gradients, 3: passes * (2 * of_weights + of_gradients)}
    traffic = by_stage.get(stage, 2 * of_gradients)
    hidden = min(traffic, cluster.overlap * (of_products if stage == 3 else backward))
    share = counts["trained"] / (ranks if stage or not wide else 1)
    of_optimizer = _OPTIMIZER_BYTES * share / (1e9 * cluster.memory_gb_s)
    seconds = of_products + traffic - hidden + of_optimizer
    tokens = ranks * passes * config.train.micro_batch_size * config.data.length
    return {
        "ranks": float(ranks),
        "products_s": of_products,
        "traffic_s": traffic - hidden,
        "hidden_s": hidden,
        "optimizer_s": of_optimizer,
        "step_s": seconds,
        "tokens_per_s": tokens / seconds,
    }


def simulate(
    cluster: H100, config: TextSettings, work: dict[str, float], counts: dict[str, int], numbers: tuple[int, ...]
) -> list[dict[str, float]]:
    """`step_time` for each number of ranks, and the share of the tokens/s that as many single ranks would have.

    Raises `ValueError` for offload.
    """
    check(not config.zero.offload, "zero.offload", config.zero.offload, "false where a step is simulated")
    alone = step_time(cluster, config, work, counts, 1)["tokens_per_s"]
    rows = [step_time(cluster, config, work, counts, ranks) for ranks in numbers]
    return [{**row, "efficiency": row["tokens_per_s"] / (alone * row["ranks"])} for row in rows]


def _collective(cluster: H100, size: int, ranks: int) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes; over several machines the network is the narrower."""
    if ranks == 1:
        return 0.0
    inside = ranks <= cluster.ranks_per_machine
    speed = 1e9 * (cluster.link_gb_s if inside else min(cluster.link_gb_s, cluster.network_gb_s))
    messages = math.ceil(size / _BUCKET) * math.ceil(math.log2(ranks))
    return size * (ranks - 1) / ranks / speed + 1e-6 * cluster.latency_us * messages


def measured(config: TextSettings, hidden_size: int, world: World) -> H100:
    """The machine at hand as a cluster: products of the run's shapes, copies, and sums over the ranks that there are. All ranks call it.

    A single rank has nobody to send to: the speed of its links is then that of its memory.
    """

    def fastest(work: Callable[[], object], repeat: int = 5) -> float:
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    tokens = config.train.micro_batch_size * config.data.length
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(tokens, hidden_size, device=world.device, dtype=dtype)
        w = torch.randn(hidden_size, 4 * hidden_size, device=world.device, dtype=dtype)
        rates.append(8e-12 * tokens * hidden_size**2 / fastest(lambda x=x, w=w: x @ w))
    block = torch.zeros(1 << 22, device=world.device)
    memory = 2e-9 * 4 * block.numel() / fastest(lambda: block + 1)
    link, latency, size = memory, 0.0, world.size
    if size > 1:
        latency = fastest(lambda: sum_over_ranks(torch.zeros(1, device=world.device))) / 2
        seconds = fastest(lambda: sum_over_ranks(block)) / 2
        link = 4e-9 * block.numel() * (size - 1) / size / max(1e-9, seconds - latency)
    on_cpu = world.device.type == "cpu"
    return H100(
        tflops=rates[1],
        tflops_float32=rates[0],
        memory_gb_s=memory,
        link_gb_s=link,
        network_gb_s=link,
        latency_us=1e6 * latency,
        ranks_per_machine=size,
        overlap=0.0 if on_cpu else 0.8,
    )

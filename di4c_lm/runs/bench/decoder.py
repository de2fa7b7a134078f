"""Time and memory of a step of a decoder, forward with the logits of all positions or with the backward pass, against transformers:

    di4c bench decoder H=512 blocks=8 S=32000 D=256 B=4 threads=2 [backward=true] [--json]

Both have the same random weights, those of a `LlamaForCausalLM` under a full attention mask.
"""

import ctypes
import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from di4c_lm.core.settings import section, setting
from di4c_lm.networks.decoder import Decoder
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark
from di4c_lm.runs.bench.measure import PeakMemory, llama_shape


@section
class Settings(BenchSettings):
    """Time and memory of a step of a decoder, against the same network of transformers."""

    D: int = setting(256, "positions in a sequence")
    B: int = setting(4, "sequences in a batch")
    S: int = setting(32000, "rows of the vocabulary")
    H: int = setting(512, "width")
    blocks: int = setting(8, "blocks")
    heads: int = setting(8, "attention heads")
    backward: bool = setting(False, "the cross-entropy of all positions and its backward pass are part of the step")

    WAYS = ("ours", "transformers")


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """The fastest of `repeat` steps, in seconds of wall clock and of the processor, and memory above the weights."""
    device = settings.torch_device()
    theirs = reference(settings).to(device)
    x = torch.randint(settings.S - 1, (settings.B, settings.D), generator=torch.Generator().manual_seed(1)).to(device)
    network = theirs if way == "transformers" else ours_of(theirs, settings)
    step = functools.partial(_theirs if way == "transformers" else _ours, network, x)
    del theirs
    _give_back()
    memory, best = PeakMemory(device), (float("inf"), float("inf"))
    with torch.set_grad_enabled(settings.backward):
        value = _run(step, x, settings)  # what is made once is no part of the time of a step
        for _ in range(settings.repeat):
            network.zero_grad(set_to_none=True)
            begun, used = time.perf_counter(), time.process_time()
            value = _run(step, x, settings)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - begun, time.process_time() - used))
    gib = memory.peak() - memory.base
    return {"seconds": best[0], "cpu_seconds": best[1], "peak_gib_above_models": gib, "value": value}


def _give_back() -> None:
    """What was freed goes back to the system, so that it is not taken for what is in use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reference(settings: Settings) -> Any:
    """The model of transformers, of random weights."""
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": settings.H,
        "num_hidden_layers": settings.blocks,
        "num_attention_heads": settings.heads,
    }
    shape |= {"vocab_size": settings.S, "intermediate_size": 8 * settings.H // 3, "max_position_embeddings": settings.D}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()


def ours_of(theirs: Any, settings: Settings) -> Decoder:
    """The same network as a decoder."""
    config = llama_shape(settings.H, settings.blocks, settings.heads, norm_eps=theirs.config.rms_norm_eps)
    decoder = Decoder(config, num_states=settings.S)
    decoder.load_state_dict({name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()})
    return decoder.to(theirs.device).eval()


def _run(step: Callable[[], Tensor], x: Tensor, settings: Settings) -> float:
    logits_NS = step()
    if not settings.backward:
        return float(logits_NS[0, 0])
    loss = F.cross_entropy(logits_NS, x.flatten())
    loss.backward()
    return float(loss.detach())


def _ours(network: Decoder, x: Tensor) -> Tensor:
    said = network(x, torch.ones(len(x), device=x.device))
    position_N = torch.arange(x.shape[1], device=x.device).repeat(len(x))
    return said.output_head.logits(said.features.flatten(0, 2), position_N)


def _theirs(network: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(len(x), 1, x.shape[1], x.shape[1], device=x.device)  # every position sees all
    return network(x, attention_mask=mask, use_cache=False).logits.flatten(0, 1)


main = functools.partial(
    run_benchmark, "di4c bench decoder", Settings, measure, ratios=("seconds", "cpu_seconds", "peak_gib_above_models")
)

"""A decoder of LLaDA's width (Nie et al. 2025), with as many of its 32 layers as fit: forward passes of random weights."""

import dataclasses
from collections.abc import Callable

import torch

from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.processes.denoiser import row_chunks
from di4c_lm.runs.bench.gpu.trial import Found, Row, attempt, fastest, half_precision, matrix_rate, sized, teraflops
from di4c_lm.runs.bench.measure import PeakMemory

_CHUNK = 256  # rows of logits held at once


def measure(device: torch.device, *, scale: float) -> Found:
    """Rows by batch of a pass of D = 1,024 positions, MASK everywhere, with the logits of all of them; the width is 4,096 times `scale`."""
    dtype = half_precision(device)
    rate = matrix_rate(device, dtype)
    yield "matrix_rate", rate
    heads, length = sized(32, scale, 2), sized(1024, scale, 8)
    config = DecoderConfig(
        hidden_size=128 * heads,
        num_blocks=sized(32, scale, 2),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        mlp_size=3 * 128 * heads,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        attention="sdpa",
    )
    num_states = sized(126_464, scale, 50)
    decoder, wanted, memory = None, config.num_blocks, PeakMemory(device)
    while decoder is None and config.num_blocks:
        made: list[Decoder] = []
        failed = attempt(lambda config=config, made=made: _make(made, config, num_states, device, dtype, length))
        if "error" in failed and config.num_blocks == 1:
            raise MemoryError(failed["error"])
        decoder = None if "error" in failed else made[0]
        config = config if decoder else dataclasses.replace(config, num_blocks=max(1, 3 * config.num_blocks // 4))
    assert decoder is not None
    yield (
        "model",
        {
            "width": config.hidden_size,
            "layers": config.num_blocks,
            "layers_wanted": wanted,
            "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
            "gib": memory.now() - memory.base,
        },
    )
    for batch in (1, 4, 16):
        yield f"batch {batch}", attempt(lambda batch=batch: _timed(decoder, batch, length, device, rate["teraflops"]))


def _make(
    made: list[Decoder], config: DecoderConfig, num_states: int, device: torch.device, dtype: torch.dtype, length: int
) -> Row:
    """Put a decoder that has passed one sequence into `made`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            decoder = Decoder(config, num_states=num_states).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    _forward(decoder, 1, length, device)()
    made.append(decoder)
    return {}


def _forward(decoder: Decoder, batch: int, length: int, device: torch.device) -> Callable[[], None]:
    """A pass of `batch` sequences with the logits of all positions, a chunk of them at a time."""
    x_t = torch.full((batch, length), decoder.mask_id, device=device)
    t_B = torch.ones(batch, device=device)
    position_N = torch.arange(length, device=device).repeat(batch)

    @torch.no_grad()
    def run() -> None:
        prediction = decoder(x_t, t_B)
        features_NH = prediction.features.flatten(0, 2)
        for rows in row_chunks(len(features_NH), _CHUNK):
            prediction.output_head.logits(features_NH[rows], position_N[rows])

    return run


def _timed(decoder: Decoder, batch: int, length: int, device: torch.device, rate: float) -> Row:
    run, memory = _forward(decoder, batch, length, device), PeakMemory(device)
    seconds, products = fastest(run, device), teraflops(run)
    return {
        "seconds": seconds,
        "tokens_per_s": batch * length / seconds,
        "peak_gib": memory.peak(),
        "teraflops": products,
        "share_of_matrix_rate": products / seconds / rate,
    }

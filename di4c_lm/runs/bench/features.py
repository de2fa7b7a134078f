"""Time of a training step of a head behind a frozen decoder without the optimiser, from features made before against running the decoder:

    di4c bench features H=512 blocks=8 S=32768 D=256 B=4 mixture=class_chain threads=2 [--json]

The decoder has random weights. Both ways read the same x_t; `cached` also reads its features from a folder of shards on disk.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from di4c_lm.core.settings import section, setting
from di4c_lm.data.batches import BatchStream, PackedSource, batch_rng
from di4c_lm.data.records.features import DTYPE, FEATURES, WIDTH, FeatureSource, Precision, rows_of, stored, tail_of
from di4c_lm.data.records.shards import Index, Shards, row_dtype
from di4c_lm.data.records.writer import writing
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.networks.decoder import Decoder
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark
from di4c_lm.runs.bench.measure import Stopwatch, llama_shape, measure_step

_BATCHES = 4  # that are cached, and read in turn


@section
class Settings(BenchSettings):
    """Time of a training step of a head behind a frozen decoder, from features made before, and by running the decoder."""

    D: int = setting(256, "positions in a sequence")
    B: int = setting(4, "sequences in a batch")
    S: int = setting(32768, "states: the vocabulary and MASK")
    H: int = setting(512, "width of the decoder")
    blocks: int = setting(8, "blocks of the decoder")
    heads: int = setting(8, "attention heads")
    mixture: Literal["class_chain", "sequential"] = setting("class_chain", "the head that is trained")
    codes: int = setting(64, "classes of a class chain")
    precision: Precision = setting("bfloat16", "type in which features are stored")

    WAYS = ("cached", "teacher")


@torch.no_grad()
def write(folder: Path, settings: Settings, decoder: Decoder, process: MaskedProcess, rng: torch.Generator) -> None:
    """Some batches of random tokens, their x_t and the decoder's features there."""
    rows, values, first, dtype = [], [], 0, row_dtype(settings.S)
    tokens_ND = torch.randint(settings.S - 1, (_BATCHES * settings.B, settings.D), generator=rng).numpy()
    stream = BatchStream(PackedSource(tokens_ND, 0), micro_batch_size=settings.B)
    for batch in itertools.islice(stream, _BATCHES):
        noised = Likelihood().noise(process, batch, batch_rng(0, batch))
        unknown_BD = process.unknown(noised.x_t)
        device = decoder.embed_tokens.weight.device
        features = decoder(noised.x_t.to(device), noised.t.float().to(device)).features[:, 0][unknown_BD.to(device)]
        rows.append(rows_of(batch, noised, unknown_BD.sum(1), first, settings.D, dtype))
        values.append(stored(features.cpu(), settings.precision))
        first += len(features)
    facts = {WIDTH: settings.H, DTYPE: settings.precision}
    more: dict[str, Any] = {"num_states": settings.S, "coder": "", "facts": facts, "made_by": {}}
    index = Index(kind="features", length=settings.D, dtype=dtype, tail=tail_of(settings.D, dtype), **more)
    with writing(folder, index, len(tokens_ND)) as writer:
        writer.append_with(np.concatenate(rows), FEATURES, np.concatenate(values))
        writer.close({})


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """Seconds, memory, and KiB a sequence on disk of one way, in this process."""
    device, rng = settings.torch_device(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = llama_shape(settings.H, settings.blocks, settings.heads)
    decoder, process = Decoder(config, num_states=settings.S).to(device), MaskedProcess(settings.S - 1)
    chain = ClassChainSettings(codebook_size=settings.codes)
    student = (chain if settings.mixture == "class_chain" else SequentialSettings()).over(decoder, rng)
    objective = Likelihood().build(student, process, seed=0)
    with TemporaryDirectory() as name:
        write(Path(name), settings, decoder, process, rng)
        shards = Shards.read(Path(name))
        stream = BatchStream(FeatureSource(shards, 0), micro_batch_size=settings.B)

        def loss() -> torch.Tensor:
            batch = next(stream)
            assert batch.noised is not None
            kept = batch.noised.features if way == "cached" else None
            noised = dataclasses.replace(batch.noised, features=kept)
            moved = {key: getattr(noised, key).to(device) for key in ("x_t", "t", "s")}
            moved |= {} if kept is None else {"features": kept.to(device)}
            placed = {key: getattr(batch, key).to(device) for key in ("x", "sample_id", "epoch")}
            return objective(dataclasses.replace(batch, **placed, noised=dataclasses.replace(noised, **moved)))[0]

        loss()  # what is made once, such as casts, is no part of a step
        found = measure_step(student, loss, Stopwatch(device), ("forward",), settings.repeat)
        size = sum(shard.size for shard in shards.index.files)
        return {key: found[key] for key in ("seconds", "cpu_seconds", "peak_gib", "value")} | {
            "kib_a_sequence": size / 2**10 / len(shards)
        }


main = functools.partial(run_benchmark, "di4c bench features", Settings, measure, ratios=("seconds", "cpu_seconds"))

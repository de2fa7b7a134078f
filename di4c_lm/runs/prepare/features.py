"""Write x_t of a corpus and the features of a frozen teacher at its masked positions, once: a head is then trained without running it.

    di4c prepare features out=<folder> [epochs=4] teacher=<run, folder, file or hub name> data=<corpus> [the other keys of di4c train]
    di4c train data=features data.path=<folder> data.length=<the same> teacher=<the same> [the same mixture and objective]

Each sequence is taken `epochs` times, each time with an x_t of its own. Interrupted, the command resumes when it is started again with
the same arguments.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from di4c_lm.core.compose import parse
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.settings import at_least, check, section, setting, to_dict
from di4c_lm.core.terminal import errors_end, log_to_terminal, progress_bar
from di4c_lm.data.batches import Source, batch_rng
from di4c_lm.data.records.features import DTYPE, FEATURES, TIMES, WIDTH, Precision, rows_of, stored, tail_of
from di4c_lm.data.records.shards import FILLING, Index, row_dtype
from di4c_lm.data.records.writer import ShardWriter, write_shard, writing
from di4c_lm.data.text.packing import token_id
from di4c_lm.data.text.prepare import TEACHER, TOKENIZER, VALIDATION, write_held_out
from di4c_lm.data.text.tokenizers import save_tokenizer
from di4c_lm.domains.text.domain import DOMAIN, TextData
from di4c_lm.domains.text.model import TextModel
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.runs.command import own_arguments
from di4c_lm.runs.folder import parse_run
from di4c_lm.runs.preflight import check_all
from di4c_lm.training.distributed import World, choose_device

_PROGRAM = "di4c prepare features"


@section
class Settings:
    """x_t of a corpus and the features of a frozen teacher there; the other keys are those of the run that is to read them."""

    out: str = setting("", "folder to write")
    epochs: int = setting(1, "times that each sequence is taken, each with an x_t of its own")
    precision: Precision = setting("float32", "type in which features are stored")
    batch_size: int = setting(32, "sequences at once")
    shard_rows: int = setting(256, "sequences a file; at most so many are lost when the command is killed")

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size", "shard_rows")


def write_features(settings: Settings, run: TextSettings) -> str:
    """Make what is missing; what the folder holds, and how to train on it. Raises `ValueError` for settings that read no features."""
    check(settings.out, "out", settings.out, "a folder to write to")
    check(run.data.kind != "features", "data", run.data.kind, f"a corpus for {_PROGRAM}")
    check(
        not run.data.streaming,
        "data.streaming",
        True,
        f"false for {_PROGRAM}; di4c prepare shards makes shards of a stream",
    )
    run.check_features(f"for {_PROGRAM}")
    check_all(DOMAIN, run)
    world = World(rank=0, local_rank=0, size=1, device=choose_device(run.run.device, 0))
    data, path = DOMAIN.data(run, world, run.run.cache), run.teacher.path
    assert path is not None
    teacher = DOMAIN.read(path, run, data)
    check(not teacher.denoiser.has_latents, "teacher", path, f"a network without λ for {_PROGRAM}")
    teacher.denoiser.eval().to(world.device)
    source, folder = data.source(run.train.seed), Path(settings.out)
    assert isinstance(source, Source)
    index, total = _index(settings, run, data, teacher), settings.epochs * len(source)
    with writing(folder, index, settings.shard_rows) as writer:
        if writer.finished is None:
            save_tokenizer(teacher.tokenizer, folder / TOKENIZER)
            begun, starts = (writer.place or {"rows": 0})["rows"], range(0, total, settings.shard_rows)
            for start in progress_bar(starts, desc=FEATURES, unit="shard"):
                if start >= begun:
                    count = min(settings.shard_rows, total - start)
                    _write(writer, settings, run, source, teacher, range(start, start + count), index.dtype)
                    writer.commit({"rows": start + count})
            write_held_out(folder, data.corpus.validation_texts)
            validation_NW = data.corpus.validation.numpy()
            if data.corpus.validation_given is not None:
                validation_NW = run.data.filling.held_out(validation_NW, data.corpus.validation_given.numpy())
            whole_NW = np.pad(validation_NW, ((0, 0), (0, index.width - validation_NW.shape[1]))).astype(index.dtype)
            values = sum(shard.rows for shard in writer.beside)
            writer.close({"sequences": len(source), "features": values}, write_shard(folder, VALIDATION, whole_NW))
        done = writer.finished or Index.read(folder)
    size = sum(shard.size for shard in (*done.train, *done.beside))
    records = "" if run.data.records == "text" else f" data.records={run.data.records}"
    return (
        f"{folder}: {done.rows:,} sequences with {done.counts['features']:,} features, {size / 2**20:,.1f} MiB, "
        f"{size / done.rows / 2**10:,.1f} KiB a sequence\n"
        f"train on them: teacher={path} data=features data.path={folder} data.length={done.length}{records}"
    )


@torch.no_grad()
def _write(
    writer: ShardWriter,
    settings: Settings,
    run: TextSettings,
    source: Source,
    teacher: TextModel,
    places: range,
    dtype: str,
) -> None:
    """One shard, of the sequences at these places of the source."""
    rows, values, first = [], [], 0
    device = next(teacher.denoiser.parameters()).device
    for start in places[:: settings.batch_size]:
        batch = source.read(start, min(settings.batch_size, places.stop - start))
        noised = run.objective.noise(teacher.process, batch, batch_rng(run.train.seed, batch))
        x_t = noised.x_t.to(device)
        unknown_BD = teacher.process.unknown(x_t)
        segments = None if batch.segments is None else batch.segments.to(device)
        features = teacher.denoiser(x_t, noised.t.float().to(device), None, segments).features[:, 0][unknown_BD]
        rows.append(rows_of(batch, noised, unknown_BD.sum(1).cpu(), first, run.data.length, dtype))
        values.append(stored(features.cpu(), settings.precision))
        first += len(features)
    writer.append_with(np.concatenate(rows), FEATURES, np.concatenate(values))


def _index(settings: Settings, run: TextSettings, data: TextData, teacher: TextModel) -> Index:
    config, network = run.data, teacher.denoiser
    weights = DOMAIN.weights(run.teacher.path or "", run).fingerprint
    tokens, dtype = fingerprint(teacher.tokenizer), row_dtype(max(len(teacher.tokenizer), config.length + 1))
    times = json.loads(json.dumps(to_dict(run.objective.times)))
    facts = {
        "wrap": config.wrap,
        "eos_id": token_id(teacher.tokenizer.eos_token_id),
        TEACHER: weights,
        TIMES: times,
        WIDTH: network.width,
        DTYPE: settings.precision,
        **({} if config.records == "text" else {"records": config.records}),
        **({FILLING: config.filling.said()} if config.filling.has_parts else {}),
    }
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("epochs", "shard_rows", "precision")}
    return Index(
        kind="features",
        length=config.length,
        num_states=len(teacher.tokenizer),
        dtype=dtype,
        coder=tokens,
        facts=facts,
        made_by={"source": data.fingerprint, "teacher": weights, "how": {**how, "seed": run.train.seed, TIMES: times}},
        tail=tail_of(config.length, dtype),
    )


def main(argv: Sequence[str]) -> int:
    """Read the settings of the command and of the run, do the work, and print what was made. Bad input ends with status 2."""
    own, words = own_arguments(Settings, argv)
    if help_asked := [word for word in words if word in ("-h", "--help")]:
        sys.stdout.write(f"{__doc__}\n")
    settings = parse(Settings, [*own, *help_asked], program=_PROGRAM)
    said = any(word.partition("=")[0] == "eval.skip" for word in words)
    run, _ = parse_run(DOMAIN, words if said else [*words, "eval.skip=true"], program=_PROGRAM)
    log_to_terminal()
    with errors_end():
        text = write_features(settings, run)
    sys.stdout.write(f"{text}\n")
    return 0

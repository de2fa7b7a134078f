"""One run on data of a law known exactly: teacher, student, and how likely their samples are under the law itself."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ablation.study import SECONDS, Study
from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.synthetic import Source, pair_frequencies
from di4c_lm.domains.text.settings import Config
from di4c_lm.networks.dit import DIT
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.runs.fitting import fit, fit_teacher, student_of
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample
from di4c_lm.training.distributed import World, init_distributed, set_threads
from di4c_lm.training.loop import Trained

_BATCH = 1024
_TEACHER = "teacher.pt"


def run_teacher(study: Study, seed: int, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Train the teacher of `seed` into `folder`; rows of it and of the law's own samples."""
    config, world, law, source = _prepare(study, None, seed, threads)
    network = _network(config, law)
    trained = _whole(fit_teacher(config, network, source, world, folder / "training"))
    network.load_state_dict({**network.state_dict(), **trained.ema})
    torch.save(network.state_dict(), folder / _TEACHER)
    shutil.rmtree(folder / "training")
    own = law.sample(config.eval.num_samples, torch.Generator().manual_seed(seed + 1_000_000))
    return [*_rows("teacher", network, law, config), {"model": "data", "steps": 0, **_quality(own, law)}]


def run_student(
    study: Study, setting: str, seed: int, folder: Path, teacher: Path, threads: int
) -> list[dict[str, Any]]:
    """Distil the teacher in the folder `teacher` by `setting`, in its rounds; rows of the last student.

    Leaves the seconds that training took in `folder`/seconds.json.
    """
    config, world, law, source = _prepare(study, setting, seed, threads)
    network, seconds = _network(config, law), 0.0
    network.load_state_dict(torch.load(teacher / _TEACHER, weights_only=True))
    for number, one in enumerate(study.rounds(setting, seed)):
        student = student_of(one, network, source)
        begun = time.perf_counter()
        trained = _whole(fit(one, student, network, source, world, folder / f"round_{number}"))
        seconds += time.perf_counter() - begun
        student.load_state_dict({**student.state_dict(), **trained.ema})
        shutil.rmtree(folder / f"round_{number}" / "checkpoints")
        network = student
    (folder / SECONDS).write_text(json.dumps(seconds))
    return _rows("student", network, law, config)


def _whole(trained: Trained) -> Trained:
    """The training, or the end of the program with 128 + the signal that cut it: a part of a training is no outcome."""
    if trained.progress.signal:
        raise SystemExit(128 + trained.progress.signal)
    return trained


def _prepare(study: Study, setting: str | None, seed: int, threads: int) -> tuple[Config, World, Source, PackedSource]:
    config, law = study.config(setting, seed), study.law()
    world = init_distributed(config.run.device)
    set_threads(threads)
    tokens_ND = law.sample(study.sequences, torch.Generator().manual_seed(seed))
    return config, world, law, PackedSource(tokens_ND.numpy().astype(np.uint16), seed)


def _network(config: Config, law: Source) -> DIT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.teacher.pretrain.seed)
        return DIT(config.model, num_states=law.num_states + 1)


def _rows(model: str, network: DIT, law: Source, config: Config) -> list[dict[str, Any]]:
    return [
        {"model": model, "steps": steps, **_quality(_draw(network, law, steps, config), law)}
        for steps in config.eval.steps
    ]


def _draw(network: DIT, law: Source, steps: int, config: Config) -> Int64[Tensor, "N D"]:
    process, found = MaskedProcess(law.num_states), []
    network.eval()
    for number_B in torch.arange(config.eval.num_samples).split(_BATCH):
        start_BD = torch.full((len(number_B), law.length), process.mask_id)
        rng = KeyedRng(config.eval.seed, number_B)
        found.append(sample(network, process, start_BD, uniform_grid(steps), rng).x)
    return torch.cat(found)


def _quality(x_ND: Int64[Tensor, "N D"], law: Source) -> dict[str, float]:
    """Mean -log p(x) under the law (nats a sequence), and the mean total variation between pairs of neighbours and theirs.

    The second is above 0 for the law's own samples too, by chance: the rows of `data` say by how much.
    """
    nll_N: Float64[Tensor, " N"] = -law.log_prob(x_ND)
    gap_PSS = (pair_frequencies(x_ND, law.num_states) - law.pair_marginals()).abs()
    return {"nll": float(nll_N.mean()), "pair_tv": float(gap_PSS.sum((1, 2)).mean() / 2)}

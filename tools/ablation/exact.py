"""One run on data of a law known exactly: teacher, student, and how likely their samples are under the law itself."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.study import SECONDS, Study
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.data.batches import PackedSource, first_sequences
from di4c_lm.data.text.synthetic import Source, pair_frequencies
from di4c_lm.domains.domain import Interrupted
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.networks.dit import DIT
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs import recipe
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed
from di4c_lm.training.distributed import World, init_distributed, set_threads

_BATCH = 1024
_TEACHER = "teacher.pt"


@dataclass(frozen=True, kw_only=True)
class LawModel:
    """A network on the states of a law."""

    denoiser: DIT

    @property
    def process(self) -> MaskedProcess:
        """MASK is the last state."""
        return MaskedProcess(self.denoiser.mask_id)


@dataclass(frozen=True, kw_only=True)
class LawData:
    """Sequences sampled from a law once, in one order."""

    law: Source
    sequences: PackedSource
    fingerprint: str = ""

    def source(self, seed: int) -> PackedSource:
        """The sequences."""
        return self.sequences

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """The first of them."""
        return first_sequences(self.sequences, self.law.length)

    def save(self, folder: Path) -> None:
        """Nothing: they are sampled again."""


class LawDomain:
    """A domain whose data is sampled from a law that is known exactly, as far as training asks (see `di4c_lm.domains.domain.Domain`)."""

    pretraining = DOMAIN.pretraining

    def network(self, settings: TextSettings, data: LawData) -> DIT:
        """On the law's states and MASK."""
        return DIT(settings.model, num_states=data.law.num_states + 1)

    def wrap(self, network: DIT, settings: TextSettings, data: LawData) -> LawModel:
        """The network alone."""
        return LawModel(denoiser=network)


_DOMAIN: Any = LawDomain()


def run_teacher(study: Study, seed: int, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Train the teacher of `seed` into `folder`; rows of it and of the law's own samples."""
    config, world, data = _prepare(study, None, seed, threads)
    model = recipe.fresh_model(_DOMAIN, config, data, config.teacher.pretrain.seed)
    with _to_the_end():
        trained = recipe.pretrain(_DOMAIN, config, model, data.sequences, world, folder / "training")
    network, law = model.denoiser, data.law
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
    config, world, data = _prepare(study, setting, seed, threads)
    model, seconds = recipe.fresh_model(_DOMAIN, config, data, config.teacher.pretrain.seed), 0.0
    model.denoiser.load_state_dict(torch.load(teacher / _TEACHER, weights_only=True))
    for number, one in enumerate(study.rounds(setting, seed)):
        student = recipe.new_student(_DOMAIN, one, data, model)
        begun = time.perf_counter()
        with _to_the_end():
            trained = recipe.fit(one, student, model, data.sequences, world, folder / f"round_{number}")
        seconds += time.perf_counter() - begun
        student.denoiser.load_state_dict({**student.denoiser.state_dict(), **trained.ema})
        shutil.rmtree(folder / f"round_{number}" / "checkpoints")
        model = student
    (folder / SECONDS).write_text(json.dumps(seconds))
    return _rows("student", model.denoiser, data.law, config)


@contextmanager
def _to_the_end() -> Iterator[None]:
    """End the program with 128 + the signal that interrupts a training: a part of one is no outcome."""
    try:
        yield
    except Interrupted as interrupted:
        raise SystemExit(128 + interrupted.number) from interrupted


def _prepare(study: Study, setting: str | None, seed: int, threads: int) -> tuple[TextSettings, World, LawData]:
    config, law = study.config(setting, seed), study.law()
    world = init_distributed(config.run.device)
    set_threads(threads)
    tokens_ND = law.sample(study.sequences, torch.Generator().manual_seed(seed))
    return config, world, LawData(law=law, sequences=PackedSource(tokens_ND.numpy().astype(np.uint16), seed))


def _rows(model: str, network: DIT, law: Source, config: TextSettings) -> list[dict[str, Any]]:
    return [
        {"model": model, "steps": steps, **_quality(_draw(network, law, steps, config), law)}
        for steps in config.eval.steps
    ]


def _draw(network: DIT, law: Source, steps: int, config: TextSettings) -> Int64[Tensor, "N D"]:
    shape, how = (config.eval.num_samples, law.length), {"seed": config.eval.seeds[0], "batch_size": _BATCH}
    return sample_keyed(network.eval(), MaskedProcess(law.num_states), shape, uniform_grid(steps), **how).x


def _quality(x_ND: Int64[Tensor, "N D"], law: Source) -> dict[str, float]:
    """Mean -log p(x) under the law (nats a sequence), and the mean total variation between pairs of neighbours and theirs.

    The second is above 0 for the law's own samples too, by chance: the rows of `data` say by how much.
    """
    nll_N: Float64[Tensor, " N"] = -law.log_prob(x_ND)
    gap_PSS = (pair_frequencies(x_ND, law.num_states) - law.pair_marginals()).abs()
    return {"nll": float(nll_N.mean()), "pair_tv": float(gap_PSS.sum((1, 2)).mean() / 2)}

"""One run of a study, by the recipe of every run, and the rows that it is compared by."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.data.batches import PackedSource, first_sequences
from di4c_lm.data.text.synthetic import Source
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.networks.dit import DIT
from di4c_lm.networks.exact import ExactDenoiser, Posterior
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs import recipe
from di4c_lm.runs.ablate.quality import own_rows, rows_of
from di4c_lm.runs.ablate.study import Study
from di4c_lm.runs.recipe import Interrupted
from di4c_lm.training.distributed import World, init_distributed, set_threads

SECONDS = "seconds.json"  # in a run's folder: how long its training took
_TEACHER = "teacher.pt"


@dataclass(frozen=True, kw_only=True)
class ExactModel:
    """A network on the states of a distribution, of which the first `given` positions are a prompt."""

    denoiser: Any
    given: int = 0

    @property
    def process(self) -> MaskedProcess:
        """MASK is the last state."""
        return MaskedProcess(self.denoiser.num_states - 1, given=self.given)


@dataclass(frozen=True, kw_only=True)
class ExactData:
    """Sequences sampled once from a distribution, in one order; `posterior` where the teacher is exact."""

    distribution: Source
    sequences: PackedSource
    posterior: Posterior | None = None
    fingerprint: str = ""

    def source(self, seed: int) -> PackedSource:
        """The sequences."""
        return self.sequences

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """The first of them."""
        return first_sequences(self.sequences, self.distribution.length)

    def save(self, folder: Path) -> None:
        """Nothing: they are sampled again."""


class ExactDomain:
    """A domain whose distribution is known exactly, as far as training asks (see `di4c_lm.domains.domain.Domain`)."""

    pretraining = DOMAIN.pretraining

    def network(self, settings: TextSettings, data: ExactData) -> DIT:
        """On the distribution's states and MASK."""
        if data.posterior is not None:
            return ExactDenoiser(settings.model, posterior=data.posterior)
        return DIT(settings.model, num_states=data.distribution.num_states + 1)

    def wrap(self, network: DIT, settings: TextSettings, data: ExactData) -> ExactModel:
        """The network alone."""
        return ExactModel(denoiser=network, given=getattr(data.distribution, "prompt", 0))


_DOMAIN: Any = ExactDomain()


def run_text(study: Study, setting: str, seed: int, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Train on text in `folder`, as `di4c train` does; the rows of its closing report: generative perplexity and entropy.

    Teacher and evaluator are cached where the run caches them.
    """
    train_text(study, setting, seed, folder, threads)
    rows = json.loads((folder / "report" / "gen_ppl.json").read_text())["rows"]
    kept = ("model", "gen_ppl", "entropy")
    return [{**{name: row[name] for name in kept}, "steps": row["steps"] or 0} for row in rows]


def run_given(
    study: Study, setting: str | None, seed: int, folder: Path, threads: int, how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Train on text under a given teacher, without a setting nothing; rows of the student or the teacher, by `how` (`Bench.of`)."""
    from di4c_lm.runs.ablate.given import Bench

    if setting is not None:
        train_text(study, setting, seed, folder, threads, "eval.skip=true")
    config = study.config(setting, seed, f"run.threads={threads}")
    bench = Bench.of(config, **how)
    if setting is None:
        return bench.teacher_rows(study.teacher_steps)
    return bench.student_rows(folder, config.eval.steps)


def train_text(study: Study, setting: str, seed: int, folder: Path, threads: int, *more: str) -> None:
    """A run of text in `folder`, as `di4c train` makes it; `more` of its settings."""
    place = (f"run.dir={folder}", f"run.threads={threads}", *more)
    with _to_the_end():
        status = recipe.run(DOMAIN, study.config(setting, seed, *place), study.rounds(setting, seed, *place))
        if status:
            raise Interrupted(status - 128)


def run_teacher(study: Study, seed: int, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Train the teacher of `seed` into `folder`, unless it is exact; rows of it and of the distribution's own samples."""
    config, world, data = _prepare(study, None, seed, threads)
    model = recipe.fresh_model(_DOMAIN, config, data, config.teacher.pretrain.seed)
    if not study.is_exact:
        with _to_the_end():
            trained = recipe.pretrain(_DOMAIN, config, model, data.sequences, world, folder / "training")
        model.denoiser.load_state_dict({**model.denoiser.state_dict(), **trained.ema})
        shutil.rmtree(folder / "training")
    torch.save(model.denoiser.state_dict(), folder / _TEACHER)
    rows = rows_of("teacher", model, data.distribution, config, exact=study.is_exact)
    return [*rows, *own_rows(data.distribution, config, exact=study.is_exact)]


def run_student(
    study: Study, setting: str, seed: int, folder: Path, teacher: Path, threads: int
) -> list[dict[str, Any]]:
    """Distil the teacher in the folder `teacher` by `setting`, in its rounds; rows of the last student.

    Leaves the seconds that training took in `folder`/seconds.json.
    """
    config, world, data = _prepare(study, setting, seed, threads)
    model, seconds = recipe.fresh_model(_DOMAIN, config, data, config.teacher.pretrain.seed), 0.0
    model.denoiser.load_state_dict(torch.load(teacher / _TEACHER, weights_only=True))
    for number, one in enumerate(study.rounds(setting, seed) or [config]):
        student = recipe.new_student(_DOMAIN, one, data, model)
        if study.is_exact and number == 0 and not student.denoiser.shares_backbone:
            student.denoiser.network.loosen(torch.Generator().manual_seed(seed))
        begun = time.perf_counter()
        with _to_the_end():
            trained = recipe.fit(one, student, model, data.sequences, world, folder / f"round_{number}")
        seconds += time.perf_counter() - begun
        student.denoiser.load_state_dict({**student.denoiser.state_dict(), **trained.ema})
        model = student
    (folder / SECONDS).write_text(json.dumps(seconds))
    rows = rows_of("student", model, data.distribution, config, exact=study.is_exact)
    for checkpoints in folder.glob(
        "round_*/checkpoints"
    ):  # till now, so that an interrupted measurement need not train again
        shutil.rmtree(checkpoints)
    return rows


@contextmanager
def _to_the_end() -> Iterator[None]:
    """End the program with 128 + the signal that interrupts a training: a part of one is no outcome."""
    try:
        yield
    except Interrupted as interrupted:
        raise SystemExit(128 + interrupted.number) from interrupted


def _prepare(study: Study, setting: str | None, seed: int, threads: int) -> tuple[TextSettings, World, ExactData]:
    config, distribution = study.config(setting, seed), study.distribution()
    world = init_distributed(config.run.device)
    set_threads(threads)
    tokens_ND = distribution.sample(study.sequences, torch.Generator().manual_seed(seed))
    sequences = PackedSource(tokens_ND.numpy().astype(np.uint16), seed)
    posterior = Posterior(distribution) if study.is_exact else None
    return config, world, ExactData(distribution=distribution, sequences=sequences, posterior=posterior)

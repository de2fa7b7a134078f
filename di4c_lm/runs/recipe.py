"""What a run does, once for all domains: data, teacher, student, training, export, report; and several rounds of it.

`run(domain, settings)` is the whole of it. A teacher that is trained is a small run of the same kind, kept in the cache. Whatever a
signal interrupts resumes where it was when the same call is made again.
"""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from di4c_lm.checkpoints import adapters
from di4c_lm.core.cache import WORK, Cache, key_of
from di4c_lm.core.settings import kind_of, to_dict
from di4c_lm.core.terminal import Interrupted, Stages
from di4c_lm.data.batches import BatchStream, Source, Stream
from di4c_lm.domains.domain import (
    STUDENT,
    STUDENT_RAW,
    TEACHER,
    Data,
    Domain,
    FinishedRun,
    Model,
)
from di4c_lm.mixtures.base import MixtureSettings, NoMixture, drawn_from
from di4c_lm.networks.base import attention_blocks, block_matrices
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.runs.folder import check_settings, is_finished, opened, run_dir
from di4c_lm.runs.preflight import check_all
from di4c_lm.training.distributed import World, barrier, has_bfloat16, init_distributed, partition, set_threads
from di4c_lm.training.loop import Trained, train
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

logger = logging.getLogger(__name__)
ADAPTERS = "adapters"  # in the folder of a run with LoRA
_GIVEN = ("kind", "path", "weights")  # of `teacher`: what has no part in training one
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(domain: Domain, settings: Any, rounds: Sequence[Any] = ()) -> int:
    """Train and report as `settings` say, or a chain of `rounds`, each with settings of its own. All ranks call it.

    Returns the exit status: 0, or 128 + the signal that interrupted it. Raises `ValueError` for bad input, `ConnectionError` for a hub that
    does not answer, `NonFiniteError` and `CheckpointError` as `training.loop.train` does.
    """
    try:
        if rounds:
            run_rounds(domain, settings, rounds)
        else:
            run_once(domain, settings)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    return 0


def run_once(domain: Domain, settings: Any, *, export_raw: bool = False, optimizer_from: Path | None = None) -> Data:
    """One run, whole; what it has read. Raises as `run` does, and `Interrupted`.

    Args:
        export_raw: export the raw weights beside their average.
        optimizer_from: the folder of the run whose optimiser's moments this one begins with.
    """
    world, folder, cache = init_distributed(settings.run.device), run_dir(domain, settings), settings.run.cache
    world.on_main(lambda: check_all(domain, settings))
    set_threads(settings.run.threads)
    with opened(domain, settings, folder, world):
        logger.info("run %s: %d rank(s) on %s", folder, world.size, world.device.type)
        stages = stages_of(settings)
        stages.begin("data")
        data, teacher = domain.data(settings, world, cache), None
        if settings.objective.needs_teacher:
            given = settings.teacher
            stages.begin("teacher", given.path if given.kind == "pretrained" else given.kind)
            teacher = find_teacher(domain, settings, data, world, Cache(cache, world))
        if teacher is not None and world.is_main:  # before training casts it
            teacher.save_pretrained(folder / TEACHER)
        stages.begin("training", kind_of(OBJECTIVES, settings.objective), f"{settings.train.steps:,} updates")
        student = new_student(domain, settings, data, teacher)
        more: dict[str, Any] = {"optimizer_from": optimizer_from, "gather_raw": export_raw}
        trained = fit(settings, student, teacher, data.source(settings.train.seed), world, folder, **more)
        models = {TEACHER: folder / TEACHER} if teacher is not None else {}
        finished = FinishedRun(
            domain=domain, folder=folder, settings=settings, models={**models, STUDENT: folder / STUDENT}
        )
        exports = {STUDENT: trained.ema, **({STUDENT_RAW: trained.raw} if export_raw else {})}

        def export() -> None:
            stages.begin("export", folder / STUDENT)
            for name, state in exports.items():
                student.save_pretrained(folder / name, state, backbone=None if merged(settings) else f"../{TEACHER}")
            if settings.lora.rank and settings.lora.adapters:
                network = getattr(student.denoiser, "network", student.denoiser)
                adapters.write(folder / ADAPTERS, network, trained.ema, settings.lora, settings.teacher.path)
            data.save(folder)
            finished.write()

        world.on_main(export)
        if not settings.eval.skip:
            stages.begin("report", *finished.models)
        close(finished, data, world, stages)
    return data


def stages_of(settings: Any) -> Stages:
    """Those of a run."""
    teacher = ["teacher"] if settings.objective.needs_teacher else []
    return Stages("data", *teacher, "training", "export", *([] if settings.eval.skip else ["report"]))


def close(finished: FinishedRun, data: Data, world: World, stages: Stages | None = None) -> None:
    """The closing report, unless `eval.skip`; the other ranks wait for it. Where its page is, is the last that is said."""
    table = ""
    if world.is_main and not finished.settings.eval.skip:
        table = finished.domain.report(finished, data=data)
    barrier()
    if stages is not None:
        stages.end()
    if table:
        logger.info("%s", table)


def merged(settings: Any) -> bool:
    """Whether a student over a frozen teacher is exported with the teacher's weights: by default where the run made its teacher itself.

    Else the run's folder holds them once, in the teacher's.
    """
    return settings.export == "merged" or (settings.export == "auto" and settings.teacher.kind != "pretrained")


# Teachers


def find_teacher(domain: Domain, settings: Any, data: Data, world: World, cache: Cache) -> Model:
    """The teacher that `settings.teacher` names, of random weights, or trained on the data and cached. All ranks call it."""
    kind = settings.teacher.kind
    if kind == "pretrained":
        return domain.read(settings.teacher.path, settings, data)
    if kind == "random":
        return random_teacher(domain, settings, data)
    plain = to_dict(settings)
    shaping = {name: plain[name] for name in domain.pretraining.sections}
    training = {name: value for name, value in plain["teacher"].items() if name not in _GIVEN}
    key = key_of(domain.name, shaping, training, data.fingerprint)

    def make(folder: Path) -> None:
        model = fresh_model(domain, settings, data, settings.teacher.pretrain.seed)
        trained = pretrain(domain, settings, model, data.source(settings.teacher.pretrain.seed), world, folder / WORK)
        if world.is_main:
            model.save_pretrained(folder, trained.ema)

    return domain.read(cache.entry("teachers", key, make, together=True), settings, data)


def fresh_model(domain: Domain, settings: Any, data: Data, seed: int, *, fill_zeros: bool = False) -> Model:
    """A model with weights sampled from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = domain.network(settings, data)
        for parameter in network.parameters() if fill_zeros else ():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return domain.wrap(network.train(), settings, data)


def random_teacher(domain: Domain, settings: Any, data: Data) -> Model:
    """A model of the configured shape with random weights, for trials of cost."""
    seed, fill_zeros = settings.teacher.pretrain.seed, domain.pretraining.zero_gates
    model = fresh_model(domain, settings, data, seed, fill_zeros=fill_zeros)
    model.denoiser.eval()
    return model


def pretrain(domain: Domain, settings: Any, model: Model, source: Source | Stream, world: World, work: Path) -> Trained:
    """Train `model` from data alone as `teacher.pretrain` says; resumes what `work` holds.

    A batch that the ranks cannot share evenly is made larger by a few sequences. Raises `Interrupted` on a signal.
    """
    chosen, how = settings.teacher.pretrain, domain.pretraining
    micro = math.ceil(chosen.batch_size / world.size)
    if (batch_size := micro * world.size) != chosen.batch_size:
        logger.info(
            "teacher.pretrain.batch_size=%d: %d here, a multiple of the %d ranks",
            chosen.batch_size,
            batch_size,
            world.size,
        )
    matmul_dtype = chosen.matmul_dtype
    if matmul_dtype == "auto":
        matmul_dtype = "bfloat16" if has_bfloat16(world.device) else "same"
    said = {"times": chosen.times, "matmul_dtype": matmul_dtype} | {
        name: getattr(owner, name)
        for owner, name in ((chosen, "weight_power"), (settings.teacher, "label_drop"))
        if hasattr(owner, name)
    }
    objective = dataclasses.replace(how.objective, **said)
    trained = train(
        objective.build(model.denoiser, model.process, seed=chosen.seed),
        BatchStream(
            source,
            micro_batch_size=micro,
            rank=world.rank,
            world_size=world.size,
            stratified=objective.antithetic,
        ),
        train=TrainConfig(steps=chosen.steps, micro_batch_size=micro, save_every=500, seed=chosen.seed),
        optim=OptimConfig(
            kind=chosen.optim,
            lr=chosen.lr,
            muon_lr=chosen.muon_lr,
            warmup_steps=min(chosen.warmup_steps, chosen.steps),
            schedule="cosine",
            ema_decay=how.ema_decay,
        ),
        zero=ZeroConfig(),
        run_dir=work,
        device=settings.run.device,
        matrices=block_matrices(model.denoiser),
        label="teacher",
    )
    return whole(trained)


# Students


def new_student(domain: Domain, settings: Any, data: Data, teacher: Model | None) -> Model:
    """What is trained: a mixture, if the objective takes one, or a network; it begins as the teacher, or from `train.seed`.

    Raises `ValueError` for a teacher that is a mixture under an objective that has no use for it.
    """
    seed = settings.train.seed
    if teacher is None:
        teacher = fresh_model(domain, settings, data, seed)
        if not settings.objective.takes_mixture:
            return teacher
    network = teacher.denoiser
    if not settings.objective.takes_mixture and network.has_latents:
        kind = kind_of(OBJECTIVES, settings.objective)
        raise ValueError(f"objective must be likelihood or di4c where the teacher is a mixture (λ), got {kind!r}")
    rng = torch.Generator().manual_seed(seed)
    kept = {name: getattr(settings.model, name) for name in ("dropout", "attention") if hasattr(network.config, name)}
    model = dataclasses.replace(network.config, **kept)
    student = mixture_of(settings).over(network, rng, model=model, sequences=lambda: data.first_sequences(seed))
    if settings.lora.rank:
        with drawn_from(rng):
            student.adapt(settings.lora)
        adapted = sum(one.numel() for one in student.parameters() if one.requires_grad)
        logger.info("LoRA of rank %d: %s parameters are trained", settings.lora.rank, f"{adapted:,}")
    return dataclasses.replace(teacher, denoiser=student)  # pyright: ignore[reportArgumentType]


def mixture_of(settings: Any) -> MixtureSettings:
    """The student's mixture, none where its objective takes none; a codebook without a size has a vector for each of the L samples."""
    if not settings.objective.takes_mixture:
        return NoMixture()
    return settings.mixture.sized(settings.objective.num_lambdas)


def fit(
    settings: Any,
    student: Model,
    teacher: Model | None,
    source: Source | Stream,
    world: World,
    folder: Path,
    *,
    optimizer_from: Path | None = None,
    gather_raw: bool = False,
) -> Trained:
    """Train `student` by the objective on the sequences of `source` under DeepSpeed. Raises `Interrupted` on a signal."""
    student.denoiser.activation_checkpointing = settings.train.activation_checkpointing
    trained = train(
        make_objective(settings, student, teacher, world),
        batches_of(settings, source, world),
        train=settings.train,
        optim=settings.optim,
        zero=settings.zero,
        run_dir=folder,
        wandb=settings.wandb,
        tensorboard=settings.tensorboard,
        device=settings.run.device,
        is_latent=student.denoiser.learns_apart,
        matrices=block_matrices(student.denoiser),
        label=settings.objective.label,
        settings=to_dict(settings),
        optimizer_from=optimizer_from,
        gather_raw=gather_raw,
    )
    return whole(trained)


def batches_of(settings: Any, source: Source | Stream, world: World) -> BatchStream:
    """This rank's micro batches of the run."""
    return BatchStream(
        source,
        micro_batch_size=settings.train.micro_batch_size,
        gradient_accumulation=settings.train.gradient_accumulation,
        rank=world.rank,
        world_size=world.size,
        stratified=settings.objective.antithetic,
    )


def make_objective(settings: Any, student: Model, teacher: Model | None, world: World) -> nn.Module:
    """What the engine wraps; the teacher is moved to the device in the dtype of training, and partitioned if that is asked for."""
    frozen = None
    if teacher is not None:
        if settings.train.dtype != "float32" and world.is_main:
            student.denoiser.keep_exact()
        frozen = teacher.denoiser.to(world.device, _DTYPES[settings.train.dtype])
        if settings.zero.teacher == "partitioned":
            partition(attention_blocks(frozen), world)
    return settings.objective.build(student.denoiser, student.process, seed=settings.train.seed, teacher=frozen)


def whole(trained: Trained) -> Trained:
    """The training, if it came to its end. Raises `Interrupted` where a signal ended it."""
    if trained.progress.signal:
        raise Interrupted(trained.progress.signal)
    return trained


# Rounds


def run_rounds(domain: Domain, settings: Any, rounds: Sequence[Any]) -> None:
    """Train `rounds` one after the other, each in a folder of its own below the chain's, and report on all of them.

    A round that is finished is passed over, one that was interrupted resumes. Its teacher is the student of the round before it, averaged
    or raw as its `teacher.weights` says, unless it names another. Raises as `run_once` does, and `ValueError` for a round that lives
    elsewhere than in the chain's folder, or was begun under other settings.
    """
    base, world = run_dir(domain, settings), init_distributed(settings.run.device)
    chain = [linked(domain, settings, rounds, index) for index in range(len(rounds))]
    folders = [run_dir(domain, one) for one in chain]
    for number, (one, folder) in enumerate(zip(chain, folders, strict=True), 1):
        if folder != base / f"round_{number}":
            raise ValueError(f"rounds[{number - 1}]: run.dir must be {base / f'round_{number}'}, got {str(folder)!r}")
        made_here = one.teacher.path is not None and Path(one.teacher.path).parent in folders
        world.on_main(lambda one=one, skip=("teacher",) if made_here else (): check_all(domain, one, skip=skip))
        world.on_main(lambda one=one, folder=folder: check_settings(domain, one, folder, rounds=True))
    data = None
    with opened(domain, settings, base, world):
        for index, (one, folder) in enumerate(zip(chain, folders, strict=True)):
            place = f"round {index + 1} of {len(chain)}"
            if world.on_main(lambda one=one, folder=folder: is_finished(folder, reported=not one.eval.skip)):
                logger.info("%s: finished before", place)
                continue
            logger.info("%s", place)
            wants_raw = index + 1 < len(chain) and chain[index + 1].teacher.weights == "raw"
            moments = folders[index - 1] if index and not one.train.reset_optimizer else None
            data = run_once(domain, one, export_raw=wants_raw, optimizer_from=moments)
        models = {name: folder / STUDENT for name, folder in zip(names(chain), folders, strict=True)}
        finished = FinishedRun(domain=domain, folder=base, settings=settings, models=models)
        data = data or domain.data(settings, world, settings.run.cache)
        if world.is_main:
            data.save(base)
            finished.write()
        close(finished, data, world)


def names(rounds: Sequence[Any]) -> list[str]:
    """What the models of the rounds are called: by their objective, with a number where it comes more than once."""
    kinds = [kind_of(OBJECTIVES, one.objective) for one in rounds]
    return [
        kind if Counter(kinds)[kind] == 1 else f"{kind}-{kinds[: index + 1].count(kind)}"
        for index, kind in enumerate(kinds)
    ]


def linked(domain: Domain, settings: Any, rounds: Sequence[Any], index: int) -> Any:
    """Round `index` with its teacher: the round before it, unless it is the first, needs none or names its own."""
    one = rounds[index]
    own = any(key in ("teacher", "teacher.path", "teacher.kind") for key in settings.rounds[index])
    if index == 0 or own or not one.objective.needs_teacher:
        return one
    weights = one.teacher.weights
    folder = run_dir(domain, rounds[index - 1]) / (STUDENT if weights == "ema" else STUDENT_RAW)
    teacher = dataclasses.replace(one.teacher, kind="pretrained", path=str(folder), weights=weights)
    return dataclasses.replace(one, teacher=teacher)

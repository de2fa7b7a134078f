"""One training of a text network: the objective that a configuration describes, and the loop around it, on any source of sequences."""

import dataclasses
from pathlib import Path

import torch

from di4c_lm.checkpoints.student import student_from_teacher
from di4c_lm.core.settings import to_dict
from di4c_lm.data.batches import BatchStream, Source, Stream
from di4c_lm.domains.text.settings import Config
from di4c_lm.mixtures import students
from di4c_lm.mixtures.class_counts import first_sequences
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.training.distributed import World
from di4c_lm.training.loop import Trained, train
from di4c_lm.training.precision import exact_buffers
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fit_teacher(config: Config, network: DIT, source: Source | Stream, world: World, work: Path) -> Trained:
    """Train `network` by MDLM's bound as `config.teacher.pretrain` says; resumes what `work` holds. Raises `ValueError` as `fit` does."""
    pretrain = config.teacher.pretrain
    if pretrain.batch_size % world.size:
        raise ValueError(
            f"teacher.pretrain.batch_size={pretrain.batch_size} is impossible on {world.size} ranks: allowed are its multiples"
        )
    micro_batch_size = pretrain.batch_size // world.size
    return train(
        Mdlm().build(network, MaskedProcess(network.mask_id), seed=pretrain.seed),
        BatchStream(source, micro_batch_size=micro_batch_size, rank=world.rank, world_size=world.size),
        train=TrainConfig(steps=pretrain.steps, micro_batch_size=micro_batch_size, save_every=500, seed=pretrain.seed),
        optim=OptimConfig(lr=pretrain.lr, warmup_steps=min(100, pretrain.steps), schedule="cosine", ema_decay=0.999),
        zero=ZeroConfig(),
        run_dir=work,
        device=config.run.device,
        label="teacher",
    )


def student_of(config: Config, teacher: DIT, source: Source | Stream) -> DIT:
    """A student with the teacher's weights, and for Di4C a λ path drawn from `train.seed`.

    Token classes begin as those of the first of `source`, the run's sequences.
    """
    fresh, latent = torch.Generator().manual_seed(config.train.seed), latent_of(config)
    student = student_from_teacher(teacher, latent, fresh, model=student_shape(config, teacher))
    students.begin(student, teacher, lambda: first_sequences(source, config.data.length), fresh, is_latent)
    return student


def latent_of(config: Config) -> LatentConfig | None:
    """The λ path of the student, none but for Di4C; a codebook without a size has a vector for each of the L draws."""
    if not config.objective.takes_mixture:
        return None
    return students.latent_of(config.latent, config.objective)


def student_shape(config: Config, teacher: DIT) -> DitConfig:
    """The teacher's architecture, with the dropout and the attention kernel of `config.model`."""
    return dataclasses.replace(teacher.config, dropout=config.model.dropout, attention=config.model.attention)


def fit(
    config: Config,
    student: DIT,
    teacher: DIT | None,
    source: Source | Stream,
    world: World,
    run_dir: Path,
    *,
    optimizer_from: Path | None = None,
    gather_raw: bool = False,
) -> Trained:
    """Train the student by `config.objective` on the sequences of `source` under DeepSpeed."""
    student.activation_checkpointing = config.train.activation_checkpointing
    stream = BatchStream(
        source,
        micro_batch_size=config.train.micro_batch_size,
        gradient_accumulation=config.train.gradient_accumulation,
        rank=world.rank,
        world_size=world.size,
        stratified=config.objective.antithetic,
    )
    return train(
        make_objective(config, student, teacher, world),
        stream,
        train=config.train,
        optim=config.optim,
        zero=config.zero,
        run_dir=run_dir,
        wandb=config.wandb,
        device=config.run.device,
        is_latent=is_latent,
        label=config.objective.label,
        settings=to_dict(config),
        optimizer_from=optimizer_from,
        gather_raw=gather_raw,
    )


def make_objective(config: Config, student: DIT, teacher: DIT | None, world: World) -> torch.nn.Module:
    """The objective that `config.objective` describes, its teacher on the device in the dtype of training."""
    frozen = teacher
    if teacher is not None:
        with exact_buffers(teacher):
            frozen = teacher.to(world.device, _DTYPES[config.train.dtype])
    return config.objective.build(student, MaskedProcess(student.mask_id), seed=config.train.seed, teacher=frozen)

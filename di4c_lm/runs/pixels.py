"""A training run on images, from its settings to its closing report: the one place that joins the CIFAR-10 domain with training."""

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

import torch

from di4c_lm.checkpoints.unet import student_from_teacher
from di4c_lm.core import cli, image_cli
from di4c_lm.core.settings import kind_of, to_dict
from di4c_lm.data.batches import BatchStream
from di4c_lm.data.images.images import ImageSet, ImageSource
from di4c_lm.domains.pixels.model import (
    SETTINGS,
    STUDENT,
    TEACHER,
    CifarModel,
    chain_of,
    load_images,
    load_teacher,
)
from di4c_lm.domains.pixels.settings import CifarConfig
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.mixtures.class_counts import first_sequences
from di4c_lm.mixtures.students import begin, latent_of
from di4c_lm.networks.unet import UNet, is_latent, to_and_fro
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.training.distributed import World, barrier, init_distributed, set_threads
from di4c_lm.training.loop import Trained, train
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run_cifar10(config: CifarConfig) -> int:
    """Images, teacher, training, export, report. All ranks call it. Returns the exit status: 128 + a signal, or 0.

    Raises `ValueError` for bad input, `NonFiniteError` and `CheckpointError` as the training loop does.
    """
    report_settings(config)  # wrong ones are refused before anything is loaded
    world = init_distributed(config.run.device)
    set_threads(config.run.threads)
    run_dir = image_cli.run_dir(config)
    if world.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        image_cli.write_settings(run_dir / SETTINGS, config)
    logger.info("run %s: %d rank(s) on %s", run_dir, world.size, world.device.type)
    logger.info("1/5 images: %s", config.data.source)
    images = load_images(config.data, config.train.seed)
    logger.info("2/5 teacher: %s", config.teacher.path or config.teacher.kind)
    teacher, status = find_teacher(config, images.train, world, image_cli.cache_dir(config.run))
    if status:
        return status
    if world.is_main:
        teacher.save_pretrained(run_dir / TEACHER)
    logger.info("3/5 %s: %d updates", kind_of(OBJECTIVES, config.objective), config.train.steps)
    trained, student = distil(config, teacher, images.train, world, run_dir)
    if trained.progress.signal:
        return 128 + trained.progress.signal
    if world.is_main:
        logger.info("4/5 export: %s", run_dir / STUDENT)
        CifarModel(denoiser=student, chain=teacher.chain).save_pretrained(run_dir / STUDENT, trained.ema)
        if not config.eval.skip:
            logger.info("5/5 report: samples and their scores")
            from di4c_lm.domains.pixels.report import load_run
            from di4c_lm.measure.images.report import run_report

            settings = report_settings(config)
            logger.info("%s", run_report(load_run(run_dir, settings, str(world.device)), settings))
    barrier()
    return 0


def find_teacher(config: CifarConfig, images: ImageSet, world: World, cache_dir: Path) -> tuple[CifarModel, int]:
    """The teacher, and 0, or 128 + the signal that interrupted its training.

    A trained teacher lives in the cache, under the hash of all that shapes it, so that a second run skips the training.
    """
    if config.teacher.kind == "pretrained":
        return load_teacher(config, images.shape, images.levels), 0
    fresh = new_teacher(config, images)
    if config.teacher.kind == "random":
        return fresh, 0
    folder = cache_dir / "teachers" / teacher_hash(config, images)
    if not folder.is_dir():
        status = train_teacher(config, fresh, images, world, folder)
        if status:
            return fresh, status
    return CifarModel.from_pretrained(folder), 0


def new_teacher(config: CifarConfig, images: ImageSet) -> CifarModel:
    """A U-Net of the configured shape with weights drawn from `teacher.pretrain.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.teacher.pretrain.seed)
        network = UNet(config.model, shape=images.shape, num_states=images.levels)
    return CifarModel(denoiser=network, chain=chain_of(config.chain, images.levels))


def teacher_hash(config: CifarConfig, images: ImageSet) -> str:
    """Sixteen hex digits that stand for all that shapes a trained teacher."""
    plain = to_dict(config)
    parts = [plain["model"], plain["chain"], plain["teacher"]["pretrain"], config.data.flip, images.fingerprint]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train_teacher(config: CifarConfig, model: CifarModel, images: ImageSet, world: World, folder: Path) -> int:
    """Train by the cross-entropy of x_0 and put the average at `folder`, whole or not at all. Returns 0 or 128 + a signal.

    Raises `ValueError` for a batch that the ranks cannot share.
    """
    pretrain = config.teacher.pretrain
    if pretrain.batch_size % world.size:
        raise ValueError(
            f"teacher.pretrain.batch_size={pretrain.batch_size} is impossible on {world.size} ranks: allowed are its multiples"
        )
    micro = pretrain.batch_size // world.size
    source = ImageSource(images, pretrain.seed, flip=config.data.flip)
    work = folder.with_name(f"{folder.name}.training")
    trained = train(
        Denoising().build(model.denoiser.train(), model.chain, seed=pretrain.seed),
        BatchStream(source, micro_batch_size=micro, rank=world.rank, world_size=world.size, stratified=True),
        train=TrainConfig(steps=pretrain.steps, micro_batch_size=micro, save_every=500, seed=pretrain.seed),
        optim=OptimConfig(lr=pretrain.lr, warmup_steps=min(100, pretrain.steps), schedule="cosine", ema_decay=0.999),
        zero=ZeroConfig(),
        run_dir=work,
        device=config.run.device,
        label="teacher",
    )
    if trained.progress.signal:
        return 128 + trained.progress.signal
    if world.is_main:
        model.save_pretrained(folder, trained.ema)
        shutil.rmtree(work)
    barrier()
    return 0


def distil(
    config: CifarConfig, teacher: CifarModel, images: ImageSet, world: World, run_dir: Path
) -> tuple[Trained, UNet]:
    """Train a student, which begins as its teacher, by `config.objective` under DeepSpeed."""
    fresh = torch.Generator().manual_seed(config.train.seed)
    shape = dataclasses.replace(teacher.denoiser.config, dropout=config.model.dropout)
    latent = latent_of(config.latent, config.objective)
    student = student_from_teacher(teacher.denoiser, latent, fresh, model=shape)
    source = ImageSource(images, config.train.seed, flip=config.data.flip)
    order = to_and_fro(student.shape)
    begin(student, teacher.denoiser, lambda: first_sequences(source, student.length)[:, order], fresh, is_latent)
    student.activation_checkpointing = config.train.activation_checkpointing
    frozen = teacher.denoiser.to(world.device, _DTYPES[config.train.dtype])
    trained = train(
        config.objective.build(student, teacher.chain, seed=config.train.seed, teacher=frozen),
        BatchStream(
            source,
            micro_batch_size=config.train.micro_batch_size,
            gradient_accumulation=config.train.gradient_accumulation,
            rank=world.rank,
            world_size=world.size,
        ),
        train=config.train,
        optim=config.optim,
        zero=config.zero,
        run_dir=run_dir,
        wandb=config.wandb,
        device=config.run.device,
        is_latent=is_latent,
        label=config.objective.label,
        settings=to_dict(config),
    )
    return trained, student


def report_settings(config: CifarConfig) -> ImageReportConfig:
    """The closing report's settings, as `eval/images.py` takes them. Raises `ValueError` for impossible ones."""
    plain = to_dict(config.eval)
    del plain["skip"]
    try:
        return cli.build(ImageReportConfig, plain)
    except ValueError as error:
        raise ValueError(f"eval.{error}") from error

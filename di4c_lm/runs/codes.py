"""A training run on images as codes, from its settings to its closing report: it joins the ImageNet domain with training."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from di4c_lm.checkpoints.maskgit import student_of
from di4c_lm.checkpoints.vqgan import load_vqgan, save_vqgan
from di4c_lm.core import image_cli
from di4c_lm.core.settings import to_dict
from di4c_lm.data.batches import BatchStream, Source
from di4c_lm.data.images.images import ImageSource, Split
from di4c_lm.data.records.code_writer import save_codes
from di4c_lm.data.records.codes import CodeSet, CodeSource, is_code_folder, load_codes
from di4c_lm.domains.codes.model import CodeModel, encode_images, fingerprint, to_planes
from di4c_lm.domains.codes.report import PARTS, SETTINGS, STUDENT, image_run, load_images, settings_of
from di4c_lm.domains.codes.settings import ImagenetConfig
from di4c_lm.mixtures.class_counts import first_sequences
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.students import begin, latent_of
from di4c_lm.networks.maskgit import MaskGit
from di4c_lm.networks.vqgan import VqGan
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.vqgan import VqganObjective, start_codebook
from di4c_lm.training.distributed import World, barrier, init_distributed, set_threads
from di4c_lm.training.loop import Trained, train
from di4c_lm.training.settings import OptimConfig, PretrainConfig, TrainConfig, ZeroConfig

logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_START_IMAGES = 512  # whose encodings the codebook starts from


class Interrupted(Exception):
    """Training saved and left on the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"left on signal {number}")
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run works on: codes, the VQGAN they come from, and where they were made here the images."""

    codes: CodeSet
    vqgan: VqGan
    images: Split | None


def run_imagenet(config: ImagenetConfig) -> int:
    """VQGAN, codes, teacher, student, export, report. All ranks call it. Returns the exit status: 128 + a signal, or 0.

    Raises `ValueError` for bad input, and as the training loop does.
    """
    world = init_distributed(config.run.device)
    set_threads(config.run.threads)
    run_dir = image_cli.run_dir(config)
    if world.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        image_cli.write_settings(run_dir / SETTINGS, config)
    logger.info("run %s: %d rank(s) on %s", run_dir, world.size, world.device.type)
    try:
        material = find_material(config, world)
        teacher, teacher_path = find_teacher(config, material, world)
        student = train_student(config, material, teacher, world, run_dir)
    except Interrupted as left:
        return 128 + left.number
    if world.is_main:
        parts = {"domain": config.domain, "teacher": str(teacher_path.resolve())}
        (run_dir / PARTS).write_text(json.dumps(parts) + "\n")
        if not config.eval.skip:
            logger.info("6/6 report: samples and their scores")
            report(config, material, teacher_path, student, run_dir, world)
    barrier()
    return 0


def find_material(config: ImagenetConfig, world: World) -> Material:
    """Images and their VQGAN, trained where none is named, and their codes; trained and made things are cached."""
    path = Path(config.data.path).expanduser()
    if is_code_folder(path):
        if config.vqgan.path is None:
            raise ValueError(f"vqgan.path=None is impossible with codes, {path}: allowed is the VQGAN that made them")
        codes, vqgan = load_codes(path), load_vqgan(config.vqgan.path)
        if codes.vqgan != fingerprint(vqgan):
            raise ValueError(f"{path}: codes of the VQGAN {codes.vqgan}, vqgan.path is {fingerprint(vqgan)}")
        logger.info("1/6 codes: %s, %d images", path, len(codes))
        return Material(codes=codes, vqgan=vqgan, images=None)
    split = load_images(config)
    logger.info("1/6 images: %s, %d to train on, %d held out", config.data.path, *map(len, split))
    vqgan = find_vqgan(config, split, world)
    folder = cache_folder(config) / "codes" / _hash([fingerprint(vqgan), split.train.fingerprint])
    logger.info("3/6 codes: %s", folder)
    if world.is_main and not is_code_folder(folder):
        rows = encode_images(vqgan, split.train.images, levels=split.train.levels)
        save_codes(
            folder,
            rows,
            split.train.labels,
            num_codes=vqgan.num_codes,
            classes=split.train.classes,
            vqgan=fingerprint(vqgan),
            made_by={"source": split.train.name},
        )
    barrier()
    return Material(codes=load_codes(folder), vqgan=vqgan, images=split)


def find_vqgan(config: ImagenetConfig, split: Split, world: World) -> VqGan:
    """The VQGAN that is named, or one trained on the images, in the cache under the hash of all that shapes it."""
    if config.vqgan.path is not None:
        logger.info("2/6 VQGAN: %s", config.vqgan.path)
        return load_vqgan(config.vqgan.path)
    model, pretrain, images = config.vqgan.model, config.vqgan.pretrain, split.train
    expected = (model.resolution, model.resolution, model.in_channels)
    if images.shape != expected or model.out_ch != model.in_channels:
        raise ValueError(
            f"vqgan.model reads images of {expected} and writes {model.out_ch} channels, those of {config.data.path} are {images.shape}"
        )
    parts = [to_dict(model), to_dict(pretrain), config.vqgan.usage, images.fingerprint]
    folder = cache_folder(config) / "vqgans" / _hash(parts)
    logger.info("2/6 VQGAN: %s", folder)
    if not folder.is_dir():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pretrain.seed)
            network = VqGan(model)
        first = to_planes(images.images[:: max(1, len(images) // _START_IMAGES)], images.levels)
        start_codebook(network, first, torch.Generator().manual_seed(pretrain.seed))
        objective = VqganObjective(network, images.shape, images.levels, usage=config.vqgan.usage)
        trained = _pretrain(config, objective, ImageSource(images, pretrain.seed), pretrain, world, folder, "vqgan")
        if world.is_main:
            network = network.cpu().float()
            network.load_state_dict(trained.ema)
            save_vqgan(folder, network)
            shutil.rmtree(_work(folder))
        barrier()
    return load_vqgan(folder)


def find_teacher(config: ImagenetConfig, material: Material, world: World) -> tuple[MaskGit, Path]:
    """The transformer that is named, or one trained on the codes, and its folder or file."""
    codes, pretrain = material.codes, config.teacher.pretrain
    if config.teacher.path is not None:
        path = Path(config.teacher.path).expanduser()
        logger.info("4/6 teacher: %s", path)
    else:
        parts = [to_dict(config.model), to_dict(pretrain), config.teacher.label_drop, config.schedule]
        path = cache_folder(config) / "teachers" / _hash([*parts, codes.fingerprint, codes.vqgan])
        logger.info("4/6 teacher: %s", path)
        if not path.is_dir():
            train_teacher(config, material, world, path)
    model = CodeModel.from_pretrained(path, material.vqgan, **told(config))
    classes = model.denoiser.num_classes
    if classes != len(codes.classes):
        raise ValueError(f"{path}: its network has {classes} classes, {codes.name} {len(codes.classes)}")
    return model.denoiser, path


def train_teacher(config: ImagenetConfig, material: Material, world: World, folder: Path) -> None:
    """Train a transformer on the codes and put it at `folder`, whole or not at all. Resumes where it was cut."""
    codes, pretrain = material.codes, config.teacher.pretrain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretrain.seed)
        network = MaskGit(config.model, num_codes=codes.num_codes, num_classes=len(codes.classes), length=codes.length)
    model = CodeModel(denoiser=network, vqgan=material.vqgan, schedule=config.schedule)
    drop = config.teacher.label_drop
    objective = Denoising(label_drop=drop).build(network, model.process, seed=pretrain.seed)
    trained = _pretrain(config, objective, CodeSource(codes, pretrain.seed), pretrain, world, folder, "teacher")
    if world.is_main:
        model.save_pretrained(folder, trained.ema)
        shutil.rmtree(_work(folder))
    barrier()


def train_student(
    config: ImagenetConfig, material: Material, teacher: MaskGit, world: World, run_dir: Path
) -> CodeModel:
    """Distil, export to `run_dir`/student, and give the student back (on rank 0 with its averaged weights)."""
    logger.info("5/6 distil: %d updates", config.train.steps)
    latent = latent_of(config.latent, config.objective)
    shape = type(teacher.config)(**{**vars(teacher.config), "dropout": config.model.dropout})
    fresh, source = torch.Generator().manual_seed(config.train.seed), CodeSource(material.codes, config.train.seed)
    student = student_of(teacher, latent, fresh, model=shape)
    begin(student, teacher, lambda: first_sequences(source, student.length), fresh, is_latent)
    student.activation_checkpointing = config.train.activation_checkpointing
    model = CodeModel(denoiser=student, vqgan=material.vqgan, schedule=config.schedule)
    frozen = teacher.to(world.device, _DTYPES[config.train.dtype])
    stream = BatchStream(
        source,
        micro_batch_size=config.train.micro_batch_size,
        gradient_accumulation=config.train.gradient_accumulation,
        rank=world.rank,
        world_size=world.size,
    )
    trained = train(
        config.objective.build(student, model.process, seed=config.train.seed, teacher=frozen),
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
    )
    if trained.progress.signal:
        raise Interrupted(trained.progress.signal)
    if not world.is_main:
        return model
    model.save_pretrained(run_dir / STUDENT, trained.ema)
    return CodeModel.from_pretrained(run_dir / STUDENT, device=world.device)


def report(
    config: ImagenetConfig, material: Material, teacher_path: Path, student: CodeModel, run_dir: Path, world: World
) -> None:
    """Tables and pictures to `run_dir`/report, the table to the terminal; with codes alone at hand there is nothing to compare with."""
    if material.images is None:
        logger.info("no report: of the images only the codes are at hand")
        return
    from di4c_lm.measure.images.report import run_report

    settings = settings_of(config.eval)
    teacher = CodeModel.from_pretrained(teacher_path, material.vqgan, device=world.device, **told(config))
    run = image_run(run_dir, config, teacher, student, material.images, teacher_path, settings.batch_size)
    logger.info("%s", run_report(run, settings))


def told(config: ImagenetConfig) -> dict[str, Any]:
    """What the settings say of the teacher's file."""
    kept = {"num_heads": config.teacher.num_heads, "num_codes": config.teacher.num_codes}
    return {**kept, "schedule": config.schedule}


def cache_folder(config: ImagenetConfig) -> Path:
    """Where VQGANs, codes and teachers are kept, below the cache of all runs."""
    return image_cli.cache_dir(config.run) / "imagenet"


def _pretrain(
    config: ImagenetConfig,
    objective: nn.Module,
    source: Source,
    pretrain: PretrainConfig,
    world: World,
    folder: Path,
    label: str,
) -> Trained:
    """Train from data alone. Raises `ValueError` for a batch that the ranks cannot share, `Interrupted` on a signal."""
    if pretrain.batch_size % world.size:
        raise ValueError(
            f"{label}.pretrain.batch_size={pretrain.batch_size} is impossible on {world.size} ranks: allowed are its multiples"
        )
    micro = pretrain.batch_size // world.size
    trained = train(
        objective,
        BatchStream(source, micro_batch_size=micro, rank=world.rank, world_size=world.size),
        train=TrainConfig(steps=pretrain.steps, micro_batch_size=micro, save_every=500, seed=pretrain.seed),
        optim=OptimConfig(lr=pretrain.lr, warmup_steps=min(100, pretrain.steps), schedule="cosine", ema_decay=0.99),
        zero=ZeroConfig(),
        run_dir=_work(folder),
        device=config.run.device,
        label=label,
    )
    if trained.progress.signal:
        raise Interrupted(trained.progress.signal)
    return trained


def _work(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training")


def _hash(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

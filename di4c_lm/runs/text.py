"""A training run of text, from its settings to its closing report: the one place that joins the text domain with training."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import torch

from di4c_lm.core import cli
from di4c_lm.core.settings import kind_of, to_dict
from di4c_lm.data.text.corpus import Corpus, load_corpus, verify_corpus
from di4c_lm.domains.text.model import (
    SETTINGS,
    STUDENT,
    STUDENT_RAW,
    TextModel,
    load_run,
    load_teacher,
    random_teacher,
    write_parts,
)
from di4c_lm.domains.text.report import trained_evaluator
from di4c_lm.domains.text.settings import Config
from di4c_lm.measure.text.gen_ppl import GenPplConfig
from di4c_lm.measure.text.report import bound_report, gen_ppl_report
from di4c_lm.networks.dit import DIT
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.runs.fitting import fit, fit_teacher, student_of
from di4c_lm.training.distributed import World, barrier, init_distributed, set_threads

logger = logging.getLogger(__name__)


def run_text(config: Config, *, export_raw: bool = False, optimizer_from: Path | None = None) -> int:
    """Corpus, teacher, training, export, report. All ranks call it. Returns the exit status: 128 + a signal, or 0.

    `export_raw` exports the raw weights beside their average; `optimizer_from` is the folder of the run whose optimiser's moments this
    one goes on with. Raises `ValueError` for bad input,
    `NonFiniteError` and `CheckpointError` as the training loop does.
    """
    check_run(config)
    world = init_distributed(config.run.device)
    set_threads(config.run.threads)
    run_dir, cache_dir = cli.run_dir(config), cli.cache_dir(config)
    if world.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_settings(run_dir / SETTINGS, config)
    logger.info("run %s: %d rank(s) on %s", run_dir, world.size, world.device.type)
    logger.info("1/5 corpus: %s", config.data.path or config.data.kind)
    if world.local_rank == 0:
        verify_corpus(config.data, cache_dir)
    barrier()
    corpus = load_corpus(config.data, config.train.seed, cache_dir)
    teacher, teacher_path = None, None
    if needs_teacher(config):
        logger.info("2/5 teacher: %s", config.teacher.path or config.teacher.kind)
        teacher, teacher_path, status = find_teacher(config, corpus, world, run_dir, cache_dir)
        if status:
            return status
    logger.info("3/5 %s: %d updates", kind_of(OBJECTIVES, config.objective), config.train.steps)
    student = new_student(config, corpus, teacher)
    frozen = None if teacher is None else teacher.denoiser
    trained = fit(
        config,
        student,
        frozen,
        corpus.train,
        world,
        run_dir,
        optimizer_from=optimizer_from,
        gather_raw=export_raw,
    )
    if trained.progress.signal:
        return 128 + trained.progress.signal
    evaluator = config.evaluator.path
    if world.is_main:
        logger.info("4/5 export: %s", run_dir / STUDENT)
        exported = TextModel(denoiser=student, tokenizer=corpus.tokenizer, length=config.data.length)
        exported.save_pretrained(run_dir / STUDENT, trained.ema)
        if export_raw:
            exported.save_pretrained(run_dir / STUDENT_RAW, trained.raw)
        if evaluator == "train" and not config.eval.skip:
            logger.info("5/5 report: an evaluator, then samples")
            evaluator = trained_evaluator(config, corpus, cache_dir, str(world.device))
        write_parts(run_dir, teacher=teacher_path, evaluator=evaluator, validation=corpus.validation)
        if not config.eval.skip:
            report(run_dir, config)
    barrier()
    return 0


def needs_teacher(config: Config) -> bool:
    """Whether the run begins from a teacher's weights: all but a model trained anew."""
    return config.objective.needs_teacher


def new_student(config: Config, corpus: Corpus, teacher: TextModel | None) -> DIT:
    """What is trained: the teacher's weights, with a λ path for Di4C; or a network with weights drawn from `train.seed`.

    Raises `ValueError` for a teacher with λ under an objective that has no use for it.
    """
    if teacher is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            return DIT(config.model, num_states=len(corpus.tokenizer)).train()
    if not config.objective.takes_mixture and teacher.denoiser.latent is not None:
        raise ValueError(
            "objective must be likelihood or di4c where the teacher is a mixture (λ), got "
            f"{kind_of(OBJECTIVES, config.objective)!r}"
        )
    return student_of(config, teacher.denoiser, corpus.train)


def check_run(config: Config) -> None:
    """Raise `ValueError` for settings that agree with themselves but not with each other."""
    at_hand = not config.data.streaming and config.data.kind != "shards"
    if config.evaluator.path == "train" and not at_hand and not config.eval.skip:
        raise ValueError(
            "evaluator.path='train' is impossible with data.streaming=true or data.kind=shards: "
            "allowed is a folder or hub name, or eval.skip=true"
        )


def write_settings(path: Path, config: Config) -> None:
    """The whole configuration as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(config))), sort_keys=False, allow_unicode=True))


def find_teacher(
    config: Config, corpus: Corpus, world: World, run_dir: Path, cache_dir: Path
) -> tuple[TextModel, Path, int]:
    """The teacher, the folder that holds it in our format, and 0, or 128 + the signal that interrupted its training.

    A trained teacher lives in the cache, under the hash of all that shapes it, so that a second run skips the training.
    """
    if config.teacher.kind == "train":
        folder = cache_dir / "teachers" / teacher_hash(config, corpus)
        status = 0 if folder.is_dir() else train_teacher(config, corpus, world, folder)
        return (
            (random_teacher(config, corpus.tokenizer) if status else TextModel.from_pretrained(folder)),
            folder,
            status,
        )
    folder = run_dir / "teacher"
    pretrained = config.teacher.kind == "pretrained"
    teacher = load_teacher(config, corpus.tokenizer) if pretrained else random_teacher(config, corpus.tokenizer)
    if world.is_main:
        teacher.save_pretrained(folder)
    return teacher, folder, 0


def teacher_hash(config: Config, corpus: Corpus) -> str:
    """Sixteen hex digits that stand for all that shapes a trained teacher."""
    plain = to_dict(config)
    parts = [plain["model"], plain["teacher"]["pretrain"], config.data.length, corpus.fingerprint]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train_teacher(config: Config, corpus: Corpus, world: World, folder: Path) -> int:
    """Train an MDLM on the corpus and put it at `folder`, whole or not at all. Resumes where it was cut. Returns 0 or 128 + a signal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.teacher.pretrain.seed)
        network = DIT(config.model, num_states=len(corpus.tokenizer))
    model = TextModel(denoiser=network, tokenizer=corpus.tokenizer, length=config.data.length)
    work = folder.with_name(f"{folder.name}.training")
    trained = fit_teacher(config, network, corpus.train, world, work)
    if trained.progress.signal:
        return 128 + trained.progress.signal
    if world.is_main:
        model.save_pretrained(folder, trained.ema)
        shutil.rmtree(work)
    barrier()
    return 0


def report_settings(config: Config) -> GenPplConfig:
    """The closing report's settings, as `eval/gen_ppl.py` takes them."""
    evaluation = config.eval
    return GenPplConfig(
        steps=evaluation.steps,
        num_samples=evaluation.num_samples,
        batch_size=evaluation.batch_size,
        seed=evaluation.seed,
        bootstrap=evaluation.bootstrap,
        evaluator_batch_size=config.evaluator.batch_size,
        device=config.run.device,
    )


def report(run_dir: Path, config: Config) -> None:
    """The closing report: the table goes to the terminal, and for an MDLM the bound on held-out text too."""
    run, settings = load_run(run_dir), report_settings(config)
    logger.info("%s", gen_ppl_report(run, settings))
    if isinstance(config.objective, Mdlm):
        logger.info("%s", bound_report(run, settings, draws=config.objective.bound_draws))

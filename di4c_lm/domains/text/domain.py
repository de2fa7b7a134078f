"""Text: tokens under a masked process, DiT networks, MDLM teachers."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.checkpoints.weights import Weights
from di4c_lm.core.settings import check, to_dict
from di4c_lm.data.batches import PackedSource, Source, Stream, first_sequences
from di4c_lm.data.records.features import TIMES, FeatureSource
from di4c_lm.data.records.shards import Shards
from di4c_lm.data.text.corpus import Corpus, check_corpus, load_corpus, verify_corpus
from di4c_lm.data.text.prepare import TEACHER
from di4c_lm.data.text.streaming import StreamingSource
from di4c_lm.data.text.tokenizers import fingerprint
from di4c_lm.domains.domain import STUDENT, FinishedRun, Pretraining, find_run
from di4c_lm.domains.text.model import EVALUATOR, GIVEN, VALIDATION, TextModel, fitted, load_run, of_text
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.settings import Measurement, device_of
from di4c_lm.measure.text.evaluator import check_evaluator, train_evaluator
from di4c_lm.measure.text.gen_ppl import CompareConfig, GenPplConfig
from di4c_lm.measure.text.harness import HarnessConfig, harness_report
from di4c_lm.measure.text.report import bound_report, full_report, gen_ppl_report
from di4c_lm.measure.text.responses import ResponsesConfig, responses_report
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.measure.text.suite import ReportConfig
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.networks.dit import DIT
from di4c_lm.networks.lora import targeted
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.training.distributed import World, barrier


@dataclass(frozen=True, kw_only=True)
class TextData:
    """A corpus in sequences of `length` tokens."""

    corpus: Corpus
    length: int

    @property
    def fingerprint(self) -> str:
        """Of tokenizer and tokens."""
        return f"{self.corpus.fingerprint} {self.length}"

    def source(self, seed: int) -> Source | Stream:
        """The training sequences; a stream has the order of the run's seed, whoever reads it."""
        train = self.corpus.train
        return train if isinstance(train, StreamingSource) or train.seed == seed else train.ordered(seed)

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """From the beginning of the training sequences."""
        return first_sequences(_tokens(self.source(seed)), self.length)

    def save(self, folder: Path) -> None:
        """Leave the validation set, and the training text that n-grams are counted from: a finished run may have lost its files."""
        from safetensors.torch import save_file

        training_ND = first_sequences(_tokens(self.corpus.train), self.length)
        kept = {"validation": self.corpus.validation.int(), "training": training_ND.int().contiguous()}
        if self.corpus.validation_given is not None:
            kept[GIVEN] = self.corpus.validation_given.int()
        save_file(kept, str(folder / VALIDATION))


def _tokens(source: Source | Stream) -> Source | Stream:
    """The same without features, which take long to read."""
    return source.tokens if isinstance(source, FeatureSource) else source


class TextDomain:
    """See `Domain`."""

    name = "text"
    settings = TextSettings
    model = TextModel
    pretraining = Pretraining(objective=Mdlm(), sections=("model",), zero_gates=True)

    def checks(self, settings: TextSettings) -> dict[str, Callable[[], object]]:
        """See `Domain.checks`: a given teacher's tensors are looked at whole."""
        evaluator, where = (
            settings.evaluator.path,
            {"download": settings.evaluator.download, "cache": settings.run.cache},
        )
        return {
            "data": lambda: check_corpus(settings.data),
            "teacher": lambda: self.check_teacher(settings),
            "evaluator.path": lambda: evaluator == "train" or settings.eval.skip or check_evaluator(evaluator, **where),
        }

    def check_teacher(self, settings: TextSettings) -> None:
        """Raise `ValueError` for a given teacher that cannot be read, whose sequences are shorter than the data's, or whose noise the
        objective, the mixture or the sampler does not take.
        """
        if settings.objective.needs_teacher and settings.teacher.kind == "pretrained":
            weights = self.weights(settings.teacher.path or "", settings)
            weights.check(settings.teacher.path)
            if getattr(weights.model, "process", "masked") == "uniform":
                settings.check_uniform("the teacher's noise is uniform")
            if settings.lora.rank:
                network = dataclasses.replace(weights, mixture=NoMixture()).blank(settings.teacher.path)
                targeted(network, settings.lora)
            known, asked = weights.sizes["length"], settings.data.length
            if asked > known:
                raise ValueError(f"data.length must be at most {known}, the teacher's length, got {asked}")
            check_samples(settings, weights)
            if settings.data.kind == "features":
                check_features(settings, weights)

    def weights(self, path: Path | str, settings: TextSettings) -> Weights:
        """A given teacher's checkpoint, as the settings say to read it."""
        teacher, length = settings.teacher, settings.data.length
        return read_checkpoint(path, revision=teacher.revision, weights=teacher.weights, length=length)

    def data(self, settings: TextSettings, world: World, cache_dir: Path) -> TextData:
        """Read, tokenised and packed; shards are verified once a machine."""
        if world.local_rank == 0:
            verify_corpus(settings.data, cache_dir)
        barrier()
        corpus = load_corpus(settings.data, settings.train.seed, cache_dir)
        return TextData(corpus=corpus, length=settings.data.length)

    def network(self, settings: TextSettings, data: TextData) -> DIT:
        """A DiT on the tokenizer's entries."""
        tokenizer = data.corpus.tokenizer
        return DIT(of_text(settings.model, tokenizer), num_states=len(tokenizer))

    def read(self, path: Path | str, settings: TextSettings, data: TextData) -> TextModel:
        """The network of any of the field's checkpoints, its states those of the corpus's tokenizer."""
        weights = self.weights(path, settings)
        return self.wrap(fitted(weights, data.corpus.tokenizer, path).build(path), settings, data)

    def wrap(self, network: Any, settings: TextSettings, data: TextData) -> TextModel:
        """With the corpus's tokenizer."""
        return TextModel(denoiser=network, tokenizer=data.corpus.tokenizer, length=settings.data.length)

    def report(self, run: FinishedRun, settings: GenPplConfig | None = None, data: TextData | None = None) -> str:
        """Generative perplexity and entropy, and for an MDLM the bound on the validation set's perplexity."""
        return report(run, settings, None if data is None else data.corpus)


def check_samples(settings: TextSettings, teacher: Weights) -> None:
    """Raise `ValueError` for shards that are not what `objective.source` says, or are samples of another teacher."""
    if settings.data.kind != "shards":
        return
    path, source = settings.data.path or "", settings.objective.source
    sampled_by = Shards.read(Path(path).expanduser()).index.facts.get(TEACHER)
    if sampled_by is None:
        check(source == "corpus", "objective.source", source, f"corpus: {path} holds no samples of a teacher")
        return
    check(source == "teacher", "objective.source", source, f"teacher: {path} holds samples of a teacher")
    if sampled_by != (found := teacher.fingerprint):
        raise ValueError(
            f"data.path must hold samples of the teacher {settings.teacher.path}, whose weights have the fingerprint {found[:16]}, got "
            f"{path}, samples of {sampled_by[:16]}"
        )


def check_features(settings: TextSettings, teacher: Weights) -> None:
    """Raise `ValueError` for features of another teacher, or of x_t whose times are sampled otherwise."""
    path = settings.data.path or ""
    facts = Shards.read(Path(path).expanduser()).index.facts
    if facts[TEACHER] != (found := teacher.fingerprint):
        raise ValueError(
            f"data.path must hold features of the teacher {settings.teacher.path}, whose weights have the fingerprint {found[:16]}, got "
            f"{path}, features of {facts[TEACHER][:16]}"
        )
    for key, here in json.loads(json.dumps(to_dict(settings.objective.times))).items():
        there = facts[TIMES][key]
        check(
            here == there, f"objective.times.{key}", here, f"{json.dumps(there)}, as the features in {path} were made"
        )


DOMAIN = TextDomain()


# What runs are measured by


def gen_ppl(settings: GenPplConfig) -> str:
    """Generative perplexity of the models of the run that `settings` name: writes its report and returns the table."""
    return report(_found(settings), settings)


def compare(settings: CompareConfig) -> str:
    """As `gen_ppl`, of the models that are named, or of those of a chain of rounds."""
    finished = FinishedRun.read(Path(settings.run)) if settings.run else _found(settings)
    return report(finished, settings, models=settings.models)


def responses(settings: ResponsesConfig) -> str:
    """Held-out responses and continued prompts of the run that `settings` name: writes its report and returns the table."""
    return responses_report(load_run(_found(settings)), settings)


def suite(settings: ReportConfig) -> str:
    """The whole evaluation of the models of the run that `settings` name: writes its report and returns the table."""
    finished = _found(settings)
    run = chosen(load_run(finished), settings.models)
    if settings.needs_evaluator and not settings.evaluators:
        run = with_evaluator(run, finished, device=settings.device)
    return full_report(run, settings)


def harness(settings: HarnessConfig) -> str:
    """Tasks of the lm-evaluation-harness on the models of the run that `settings` name: writes their results and returns the table."""
    return harness_report(chosen(load_run(_found(settings)), settings.models), settings)


def report(
    finished: FinishedRun,
    settings: GenPplConfig | None = None,
    corpus: Corpus | None = None,
    models: Sequence[str] = (),
) -> str:
    """The report of a run as `settings` say, of other `models` if any are named; or as the run's own say, and of an MDLM its bound too.

    An evaluator that is trained for it is left in the run's folder. `corpus` spares reading the run's again.
    """
    config, run = finished.settings, load_run(finished)
    if settings is None and run.parts is not None:
        return responses_report(chosen(run, models), config.responses_report())
    asked = settings or config.closing_report()
    run = chosen(run, models)
    if asked.evaluator is None:
        run = with_evaluator(run, finished, corpus, device=asked.device)
    table = gen_ppl_report(run, asked)
    if settings is None and isinstance(config.objective, Mdlm):
        table = f"{bound_report(run, asked, draws=config.objective.bound_draws)}\n\n{table}"
    return table


def with_evaluator(run: TextRun, finished: FinishedRun, corpus: Corpus | None = None, *, device: str) -> TextRun:
    """`run`, its evaluator trained first and left in the run's folder where it has none yet."""
    if run.evaluator != "train":
        return run
    config = finished.settings
    trained = trained_evaluator(config, corpus, config.run.cache, device_of(device))
    shutil.copytree(trained, finished.folder / EVALUATOR, dirs_exist_ok=True)
    return dataclasses.replace(run, evaluator=str(finished.folder / EVALUATOR))


def _found(settings: Measurement | HarnessConfig) -> FinishedRun:
    """The run that `settings` name. Raises `ValueError` for one of images."""
    run = FinishedRun.read(find_run(settings.run, settings.outputs))
    if run.domain.name != "text":
        raise ValueError(
            f"run must be one of text, got {run.folder}: runs of images are measured by `di4c eval images`"
        )
    return run


def trained_evaluator(config: TextSettings, corpus: Corpus | None, cache: Path, device: str) -> str:
    """The folder of a small GPT-2 trained on the corpus, or taken from the cache. Raises `ValueError` for a streamed corpus.

    It reads the training text, or where `data.evaluator_share` sets text aside that alone.
    """
    corpus = corpus or load_corpus(config.data, config.train.seed, cache)
    if not isinstance(corpus.train, PackedSource):
        raise ValueError("evaluator must be a folder or hub name where the corpus is streamed, got 'train'")
    tokens_ND = (
        torch.from_numpy(corpus.train.tokens_ND.astype("int64")) if corpus.evaluator is None else corpus.evaluator
    )
    return train_evaluator(tokens_ND, corpus.tokenizer, config.evaluator, cache_dir=cache, device=device).name


def chosen(run: TextRun, models: Sequence[str]) -> TextRun:
    """`run`, its validation set and evaluator, with the models that are asked for; none: its own.

    Each is a name among its own, or a folder, or `name=folder`, of a run or of an exported model, called by its folder's name if it has no
    other. Raises `ValueError` for an absent folder, a name given twice, or a model of another tokenizer or length.
    """
    if not models:
        return run
    found: dict[str, TextModel] = {}
    paths: dict[str, Path] = {}
    how = {name: run.how[name] for name in models if name in run.how}
    for argument in models:
        name, _, after = argument.rpartition("=")
        name = argument if argument in run.models else name or Path(after).resolve().name
        if name in found:
            raise ValueError(f"models: {name!r} is there twice; give names by models=[<name>=<folder>,...]")
        if argument in run.models:
            found[name], paths[name] = run.models[name], run.paths[name]
            continue
        path = Path(after) / STUDENT if (Path(after) / STUDENT).is_dir() else Path(after)
        found[name], paths[name] = TextModel.from_pretrained(path), path
        if run.how:
            how[name] = {**next(iter(run.how.values())), "teacher": None, "hybrid_last": 0}
        sizes = (found[name].length, fingerprint(found[name].tokenizer))
        if sizes != (run.student.length, fingerprint(run.student.tokenizer)):
            raise ValueError(f"models: {path} has another tokenizer or length than the run {run.folder}")
    return dataclasses.replace(run, models=found, paths=paths, how=how)

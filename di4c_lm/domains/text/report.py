"""What a run of text is measured by: its models and others, its validation set, and its evaluator."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from di4c_lm.core import cli
from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.corpus import Corpus, load_corpus
from di4c_lm.data.text.tokenizers import fingerprint
from di4c_lm.domains.text.model import STUDENT, Run, TextModel, load_run
from di4c_lm.domains.text.settings import Config
from di4c_lm.measure.runs import find_run
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.text.evaluator import train_evaluator
from di4c_lm.measure.text.gen_ppl import CompareConfig, GenPplConfig
from di4c_lm.measure.text.report import full_report, gen_ppl_report
from di4c_lm.measure.text.suite import ReportConfig


def gen_ppl(settings: GenPplConfig) -> str:
    """Generative perplexity of the models of the run that `settings` name: writes its report and returns the table."""
    run = load_run(find_run(settings.run, settings.outputs))
    return gen_ppl_report(with_evaluator(run, settings), settings)


def compare(settings: CompareConfig) -> str:
    """As `gen_ppl`, of the models that are named, or of those of a chain of rounds."""
    run = load_run(Path(settings.run) if settings.run else find_run(None, settings.outputs))
    run = compared(settings.models, run) if settings.models else run
    return gen_ppl_report(with_evaluator(run, settings), settings)


def suite(settings: ReportConfig) -> str:
    """The whole evaluation of the models of the run that `settings` name: writes its report and returns the table."""
    run = load_run(find_run(settings.run, settings.outputs))
    return full_report(chosen(run, settings.models), settings)


def with_evaluator(run: Run, settings: GenPplConfig) -> Run:
    """`run` with its evaluator, trained now if the run left that out and no other is asked for."""
    if settings.evaluator is not None or run.evaluator != "train":
        return run
    config = cli.from_dict(run.settings)
    corpus = load_corpus(config.data, config.train.seed, cli.cache_dir(config))
    trained = trained_evaluator(config, corpus, cli.cache_dir(config), device_of(settings.device))
    return dataclasses.replace(run, evaluator=trained)


def trained_evaluator(config: Config, corpus: Corpus, cache_dir: Path, device: str) -> str:
    """The folder of a small GPT-2 trained on the corpus, or taken from the cache. Raises `ValueError` for a streamed corpus.

    It reads the training text, or where `data.evaluator_share` sets text aside that alone.
    """
    if not isinstance(corpus.train, PackedSource):
        raise ValueError("evaluator must be a folder or hub name where the corpus is streamed, got 'train'")
    tokens_ND = torch.from_numpy(corpus.train.tokens_ND.astype("int64")) if corpus.judge is None else corpus.judge
    return train_evaluator(tokens_ND, corpus.tokenizer, config.evaluator, cache_dir=cache_dir, device=device).name


def chosen(run: Run, models: Sequence[str]) -> Run:
    """`run` with the models that are asked for: names among its own, else folders as `compared` takes them; none: its own."""
    if not models:
        return run
    own = {name: run.models[name] for name in models if name in run.models}
    others = [one for one in models if one not in own]
    found = compared(others, run) if others else dataclasses.replace(run, models={}, paths={})
    paths = {name: run.paths[name] for name in own} | found.paths
    return dataclasses.replace(run, models=own | found.models, paths=paths)


def compared(models: Sequence[str], of: Run) -> Run:
    """`of`, its validation set and evaluator, with other models: each a folder, or `name=folder`, of a run or of an exported model.

    A model is called by its folder's name if it has no other. Raises `ValueError` for an absent folder, a name given twice, or a model
    of another tokenizer or length.
    """
    found: dict[str, TextModel] = {}
    paths: dict[str, Path] = {}
    for argument in models:
        name, _, after = argument.rpartition("=")
        folder = Path(after)
        name = name or folder.resolve().name
        path = folder / STUDENT if (folder / STUDENT).is_dir() else folder
        if name in found:
            raise ValueError(f"models: {name!r} is there twice; give names by models=[<name>=<folder>,...]")
        found[name], paths[name] = TextModel.from_pretrained(path), path
        sizes = (found[name].length, fingerprint(found[name].tokenizer))
        if sizes != (of.student.length, fingerprint(of.student.tokenizer)):
            raise ValueError(f"models: {path} has another tokenizer or length than the run {of.folder}")
    return dataclasses.replace(of, models=found, paths=paths)

"""The report of a run of text: the one place that joins the text domain with the metrics."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from di4c_lm.core import cli
from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.corpus import Corpus, load_corpus
from di4c_lm.data.text.tokenizers import fingerprint
from di4c_lm.domains.text.likelihood import held_out_bound
from di4c_lm.domains.text.model import STUDENT, Run, TextModel
from di4c_lm.domains.text.settings import Config
from di4c_lm.measure.render.publish import publish
from di4c_lm.measure.render.table import table
from di4c_lm.measure.statistics.bootstrap import interval
from di4c_lm.measure.text.evaluator import load_evaluator, train_evaluator
from di4c_lm.measure.text.gen_ppl import PromptedSampler, Sampler, measure, measure_conditional
from di4c_lm.measure.text.gen_ppl_settings import GenPplConfig

logger = logging.getLogger(__name__)


def gen_ppl_report(run: Run, settings: GenPplConfig) -> str:
    """Measure the models of `run` as `settings` say, write `report/gen_ppl.{json,csv,png}`, and return the table.

    Raises `ValueError` as `measure`, `load_evaluator` and `publish` do, and for a GPU that is not there.
    """
    device = _device(settings.device)
    evaluator = load_evaluator(evaluator_of(run, settings, device), device=device)
    for model in run.models.values():
        model.denoiser.to(device)
    common: dict[str, Any] = {
        "tokenizer": run.student.tokenizer,
        "evaluator": evaluator,
        "config": settings.evaluation(),
        "scoring": settings.scoring(),
    }
    prompting = settings.prompting().fit(run.student.length) if settings.conditional else None
    if prompting is not None:
        prompted = {name: _prompted(model, settings.batch_size) for name, model in run.models.items()}
        found = measure_conditional(prompted, run.validation, prompting=prompting, **common)
    else:
        free = {name: _free(model, settings.batch_size) for name, model in run.models.items()}
        found = measure(free, run.validation, **common)
    paths = publish(
        found,
        _report_folder(run, settings),
        settings={"report": dataclasses.asdict(settings), "run": run.settings},
        checkpoints=run.paths,
        tokenizer=run.student.tokenizer,
        length=run.student.length,
        evaluator=evaluator,
        scoring=settings.scoring(),
        seed=settings.seed,
        model_dtype=next(run.student.denoiser.parameters()).dtype,
        prompting=prompting,
    )
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return table(found.rows, found.comparisons)


def evaluator_of(run: Run, settings: GenPplConfig, device: str) -> str:
    """The folder or hub name of the evaluator: the one that is asked for, else the run's own, trained now if the run left that out."""
    name = settings.evaluator or run.evaluator
    if name != "train":
        return name
    config = cli.from_dict(run.settings)
    return trained_evaluator(
        config, load_corpus(config.data, config.train.seed, cli.cache_dir(config)), cli.cache_dir(config), device
    )


def trained_evaluator(config: Config, corpus: Corpus, cache_dir: Path, device: str) -> str:
    """The folder of a small GPT-2 trained on the corpus, or taken from the cache. Raises `ValueError` for a streamed corpus.

    It reads the training text, or where `data.evaluator_share` sets text aside that alone.
    """
    if not isinstance(corpus.train, PackedSource):
        raise ValueError("evaluator='train' is impossible on a streamed corpus: allowed is a folder or hub name")
    tokens_ND = torch.from_numpy(corpus.train.tokens_ND.astype("int64")) if corpus.judge is None else corpus.judge
    return train_evaluator(tokens_ND, corpus.tokenizer, config.evaluator, cache_dir=cache_dir, device=device).name


def bound_report(run: Run, settings: GenPplConfig, *, draws: int) -> str:
    """Bound the held-out perplexity of the run's models without λ, write `report/bound.json`, and return a line a model.

    A row holds model, bound_ppl = exp(nats a token) with `_low` and `_high` of a 95 % bootstrap over sequences, sequences and draws:
    `draws` times for each of the first `settings.num_samples` held-out sequences. The file carries the manifest of gen_ppl.json, which is
    written before it.
    """
    x_ND = run.validation[: settings.num_samples]
    rows: list[dict[str, Any]] = []
    for name, model in run.models.items():
        if model.denoiser.latent is not None:
            continue
        model.denoiser.to(_device(settings.device))
        nats_N = held_out_bound(model, x_ND, draws=draws, seed=settings.seed, batch_size=settings.batch_size)
        found = interval(
            lambda per_token: np.exp(per_token.mean(-1)),
            (nats_N.numpy() / x_ND.shape[1],),
            resamples=settings.bootstrap,
            seed=settings.seed,
        )
        value = {"bound_ppl": found.estimate, "bound_ppl_low": found.low, "bound_ppl_high": found.high}
        rows.append({"model": name, **value, "sequences": len(x_ND), "draws": draws})
    folder = _report_folder(run, settings)
    manifest = json.loads((folder / "gen_ppl.json").read_text())["manifest"]
    (folder / "bound.json").write_text(json.dumps({"manifest": manifest, "rows": rows}, indent=2) + "\n")
    return "\n".join(
        "{model}: held-out perplexity at most {bound_ppl:.4g} ({bound_ppl_low:.4g} to {bound_ppl_high:.4g})".format(
            **row
        )
        for row in rows
    )


def compared(models: Sequence[str], of: Run) -> Run:
    """`of`, its held-out text and evaluator, with other models: each word is a folder, or `name=folder`, of a run or of an exported model.

    A model is called by its folder's name if it has no other. Raises `ValueError` for an absent folder, a name given twice, or a model
    of another tokenizer or length.
    """
    found: dict[str, TextModel] = {}
    paths: dict[str, Path] = {}
    for word in models:
        said, _, after = word.rpartition("=")
        folder = Path(after)
        name = said or folder.resolve().name
        path = folder / STUDENT if (folder / STUDENT).is_dir() else folder
        if name in found:
            raise ValueError(f"models: {name!r} is there twice; give names by models=[<name>=<folder>,...]")
        found[name], paths[name] = TextModel.from_pretrained(path), path
        sizes = (found[name].length, fingerprint(found[name].tokenizer))
        if sizes != (of.student.length, fingerprint(of.student.tokenizer)):
            raise ValueError(f"models: {path} has another tokenizer or length than the run {of.folder}")
    return dataclasses.replace(of, models=found, paths=paths)


def _report_folder(run: Run, settings: GenPplConfig) -> Path:
    return Path(settings.report) if settings.report else run.folder / "report"


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is impossible: no GPU is visible; allowed are auto, cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _free(model: TextModel, batch_size: int) -> Sampler:
    def draw(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        return model.sample(num_samples, steps, seed=seed, batch_size=batch_size)

    return draw


def _prompted(model: TextModel, batch_size: int) -> PromptedSampler:
    def draw(prompts_NP: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        x_ND = torch.full((len(prompts_NP), model.length), model.process.mask_id)
        x_ND[:, : prompts_NP.shape[1]] = prompts_NP
        return model.sample(len(x_ND), steps, seed=seed, batch_size=batch_size, x_init=x_ND)

    return draw

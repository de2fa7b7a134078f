"""A run of a study whose teacher, texts and evaluator are given: a student by the recipe of every run, measured on texts held out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.cache import Cache
from di4c_lm.core.settings import Ints
from di4c_lm.data.text.corpus import sequences_of
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel, load_run
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.text.counting import ngram_sampler, ngrams
from di4c_lm.measure.text.evaluator import Evaluator, load_evaluator
from di4c_lm.measure.text.gen_ppl import Baseline, GenPplConfig, measure
from di4c_lm.measure.text.likelihood import joint_gain, marginal_distance
from di4c_lm.measure.text.samples import Reader, sampler_of
from di4c_lm.runs import recipe
from di4c_lm.training.distributed import init_distributed, set_threads

TIMES = (1.0, 0.5, 0.25, 0.125)  # at which nats are gained
_SEQUENCES = 512  # at most, whose nats are counted
_COUNTED = ("ngram_3", "ngram_5")
_LAMBDAS = 16
_KEPT = ("model", "steps", "gen_ppl", "gen_ppl_low", "gen_ppl_high", "entropy", "copied_8", "beaten_by")
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A given teacher, and what it and its students are measured with."""

    teacher: TextModel
    training: Int64[Tensor, "M D"]  # the students' text, of which n-grams are counted
    validation: Int64[Tensor, "N D"]
    evaluator: Evaluator
    how: GenPplConfig
    cache: Path
    device: str

    @classmethod
    def of(cls, config: TextSettings, *, validation: str, evaluator: str, download: bool = False) -> "Bench":
        """By a run's settings: its teacher and data, the texts of the file `validation`, and an evaluator by path or name."""
        world, cache, seed = init_distributed(config.run.device), config.run.cache, config.train.seed
        set_threads(config.run.threads)
        data, device = DOMAIN.data(config, world, cache), device_of(config.run.device)
        teacher: Any = recipe.find_teacher(DOMAIN, config, data, world, Cache(cache, world))
        return cls(
            teacher=replace(teacher, denoiser=teacher.denoiser.eval().to(device)),
            training=data.first_sequences(seed),
            validation=sequences_of(replace(config.data, path=validation), teacher.tokenizer),
            evaluator=load_evaluator(evaluator, device=device, download=download, cache=cache),
            how=GenPplConfig(num_samples=config.eval.num_samples, batch_size=config.eval.batch_size, seed=seed),
            cache=cache,
            device=device,
        )

    def teacher_rows(self, steps: Ints) -> Rows:
        """Of the teacher, of n-grams of the training text, and of the validation text ("data")."""
        return self._measured("teacher", self.teacher, {}, steps)

    def student_rows(self, folder: Path, steps: Ints) -> Rows:
        """Of the student of the run in `folder`, and of the nats that it gains on the product of the teacher's marginals at `TIMES`.

        Nats are a sequence's, at the positions that are masked at time t; of at most 512 validation sequences, chosen by the seed. Of a
        mixture with marginals also how far they are from the teacher's: mean KL of a sequence, worst position's total variation.
        """
        run = load_run(folder)
        student = run.student.to(self.device)
        rows = [row for row in self._measured("student", student, run.how, steps) if row["model"] == "student"]
        order_N = torch.randperm(len(self.validation), generator=torch.Generator().manual_seed(self.how.seed))
        chosen_ND = self.validation[order_N[:_SEQUENCES]]
        for t in TIMES:
            gain_N, _ = joint_gain(student, self.teacher, chosen_ND, t=t, lambdas=_LAMBDAS, seed=self.how.seed)
            rows.append({"model": "student", "t": t, "nats": float(gain_N.mean())})
            if student.denoiser.has_latents and student.has_marginals:
                how: Any = {"t": t, "lambdas": _LAMBDAS, "seed": self.how.seed}
                kl_N, worst_N = marginal_distance(student, self.teacher, chosen_ND, **how)
                rows[-1] |= {"marginal_kl": float(kl_N.mean()), "worst_tv": float(worst_N.max())}
        return rows

    def _measured(self, name: str, model: TextModel, how: Mapping[str, Any], steps: Ints) -> Rows:
        counted = ngrams(self.training, len(model.tokenizer))
        baselines = {name: Baseline(ngram_sampler(counted[name], model.length), (1,)) for name in _COUNTED}
        settings = replace(self.how, steps=steps)
        reader = Reader(tokenizer=model.tokenizer, evaluators=(self.evaluator,), settings=settings, cache=self.cache)
        sampler = sampler_of(model, settings.batch_size, **how.get(name, {}))
        found = measure({name: sampler}, self.validation, reader, baselines, self.training)
        return [{key: row[key] for key in _KEPT if key in row} for row in found.rows]

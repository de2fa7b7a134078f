"""A study: settings by name that are compared over seeds, from a YAML file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from di4c_lm.core.compose import CONFIGS, compose, compose_rounds
from di4c_lm.core.settings import check
from di4c_lm.data.text.characters import Ngram
from di4c_lm.data.text.hidden_markov import HiddenMarkov
from di4c_lm.data.text.lists import ListOperations
from di4c_lm.data.text.synthetic import CodewordMixture, CorrelatedBits, MarkovChain, Source
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.left_to_right import LeftToRight
from di4c_lm.samplers.trajectory import name_of
from di4c_lm.samplers.usual import resolved

STUDIES = CONFIGS / "study"
_SOURCES: dict[str, Callable[..., Source]] = {
    "markov": MarkovChain.random,
    "hidden_markov": HiddenMarkov.random,
    "characters": Ngram.of_text,
    "codewords": CodewordMixture.random,
    "bits": CorrelatedBits,
    "lists": ListOperations.of,
}
TEACHERS = ("train", "exact")
_KEYS = ("source", "sequences", "base", "recipe", "settings", "teacher_seed", "teacher_steps", "teacher")
GIVEN = ("teacher", "data", "validation", "evaluator")  # keys of the command, of a study with `teacher_steps`


@dataclass(frozen=True)
class Study:
    """`settings`: overrides by name, said after `base`; `recipe` is the one that `--json` reports.

    With `source` the data are `sequences` samples of a distribution that is known exactly, which measures a model too; without it they are
    the text of `base`, and an evaluator measures. With `teacher_seed` one teacher serves all seeds. With `teacher_steps` the command
    gives teachers, texts and evaluator, and a teacher is measured at these numbers of steps. `teacher`: train one on the samples, or take
    the exact posterior marginals of the source.
    """

    name: str
    base: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    recipe: str
    source: dict[str, Any] = field(default_factory=dict)
    sequences: int = 100_000
    teacher_seed: int | None = None
    teacher_steps: tuple[int, ...] = ()
    teacher: str = "train"

    @property
    def is_given(self) -> bool:
        """Whether teachers, texts and evaluator are the command's."""
        return bool(self.teacher_steps)

    @property
    def counts_text(self) -> bool:
        """Whether the source is made of a text."""
        return self.source.get("kind") == "characters"

    def under(self, more: Mapping[str, Any]) -> "Study":
        """The study with these settings of every run."""
        return replace(self, base=(*self.base, *(f"{key}={value}" for key, value in more.items())))

    @property
    def is_exact(self) -> bool:
        """Whether the teacher is exact."""
        return self.teacher == "exact"

    def distribution(self) -> Source:
        """That of the data."""
        kind, facts = self.source["kind"], {key: value for key, value in self.source.items() if key != "kind"}
        return _SOURCES[kind](**facts)

    def overrides(self, setting: str | None, seed: int) -> list[str]:
        """The arguments of a run; without `setting`, of the teacher that all settings share."""
        teacher_seed = seed if self.teacher_seed is None else self.teacher_seed
        seeds = [f"train.seed={seed}", f"eval.seeds=[{seed}]"]
        seeds += [] if self.is_given else [f"teacher.pretrain.seed={teacher_seed}"]
        return [*self.base, *(() if setting is None else self.settings[setting]), *seeds]

    def config(self, setting: str | None, seed: int, *more: str) -> TextSettings:
        """The settings of a run; `ValueError` as for the command line."""
        return compose(TextSettings, [*self.overrides(setting, seed), *more], CONFIGS, "text")

    def rounds(self, setting: str, seed: int, *more: str) -> list[TextSettings]:
        """The settings of the rounds of a run; none where it has no rounds."""
        config = self.config(setting, seed, *more)
        overrides, folder = [*self.overrides(setting, seed), *more], Path(config.run.dir or "outputs")
        return compose_rounds(config, overrides, CONFIGS, "text", folder)

    def timed(self, setting: str, steps: int) -> "tuple[Study, str]":
        """The study with `setting` once more, under a name of its own, with so many updates."""
        name = f"{setting}, {steps} updates"
        return replace(self, settings={**self.settings, name: (*self.settings[setting], f"train.steps={steps}")}), name


def load_study(name: str, *, data: str = "", teacher: str = "") -> Study:
    """The study of that name in `configs/study/`, or in the YAML file of that path, with every setting's configuration checked.

    `data` (of a source that counts a text) and `teacher` are in place of the study's own. Raises `ValueError` that names the file and
    what is wrong with it.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    known = ", ".join(sorted(found.stem for found in STUDIES.glob("*.yaml")))
    check(path.is_file(), "study", name, f"one of {known}, or the path of a .yaml file")
    try:
        study = _read(path.stem, yaml.safe_load(path.read_text(encoding="utf-8")))
        if data and study.counts_text:
            study = replace(study, source={**study.source, "data": data})
        if teacher:
            study = replace(study, teacher=teacher)
        check(study.teacher in TEACHERS, "teacher", study.teacher, f"one of {', '.join(TEACHERS)}")
        check(bool(study.source) or not study.is_exact, "teacher", study.teacher, "train where the study has no source")
        needs_exact = study.source.get("kind") == "lists"
        check(study.is_exact or not needs_exact, "teacher", study.teacher, "exact where source.kind=lists")
        for setting in study.settings:
            study.rounds(setting, 0)
            config = study.config(setting, 0)
            sampler = resolved(config.sampler, config)
            known_error = isinstance(sampler, Ancestral | LeftToRight) or not study.is_exact
            check(known_error, "sampler", name_of(sampler), "ancestral or left_to_right where the teacher is exact")
        if study.source:
            study.distribution()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _read(name: str, plain: dict[str, Any]) -> Study:
    check(set(plain) <= set(_KEYS), "the keys", ", ".join(plain), f"of {', '.join(_KEYS)}")
    check(plain.get("settings"), "settings", plain.get("settings"), "a mapping of at least one name to its overrides")
    settings = {str(key): tuple(overrides or ()) for key, overrides in plain["settings"].items()}
    kind = plain.get("source", {}).get("kind")
    check("source" not in plain or kind in _SOURCES, "source.kind", kind, f"one of {', '.join(_SOURCES)}")
    check(plain["recipe"] in settings, "recipe", plain["recipe"], f"one of {', '.join(settings)}")
    steps = tuple(plain.get("teacher_steps", ()))
    ok = all(isinstance(one, int) and one >= 1 for one in steps) and not (steps and "source" in plain)
    check(ok, "teacher_steps", steps, "numbers of at least 1, and none beside a source")
    rest = {key: plain[key] for key in ("source", "sequences", "teacher_seed", "teacher") if key in plain}
    rest["teacher_steps"] = steps
    return Study(name, tuple(plain.get("base", ())), settings, plain["recipe"], **rest)

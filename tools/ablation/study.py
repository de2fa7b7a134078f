"""A study: one YAML of settings, each a list of the words that `launch/train_lm.py` takes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from di4c_lm.core.compose import compose, compose_rounds
from di4c_lm.data.text.synthetic import CodewordMixture, CorrelatedBits, MarkovChain, Source
from di4c_lm.domains.text.settings import TextSettings

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = CONFIGS / "study"
SECONDS = "seconds.json"  # in a run's folder: how long its training took
_SOURCES = {"markov": MarkovChain.random, "codewords": CodewordMixture.random, "bits": CorrelatedBits}


@dataclass(frozen=True)
class Study:
    """`settings`: words by name, said after `base`; `recipe` is the one that `--json` reports.

    With `source` the data are drawn from a law known exactly, `sequences` of them, and a model is judged by it; without it the data are the
    text of `base`, and a language model judges. With `teacher_seed` one teacher serves all seeds.
    """

    name: str
    base: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    recipe: str
    source: dict[str, Any] = field(default_factory=dict)
    sequences: int = 100_000
    teacher_seed: int | None = None

    def law(self) -> Source:
        """The law of the data."""
        kind, facts = self.source["kind"], {key: value for key, value in self.source.items() if key != "kind"}
        return _SOURCES[kind](**facts)

    def words(self, setting: str | None, seed: int) -> list[str]:
        """What is said on the command line of a run; without `setting`, of the teacher that all settings share."""
        teacher_seed = seed if self.teacher_seed is None else self.teacher_seed
        seeds = (f"train.seed={seed}", f"teacher.pretrain.seed={teacher_seed}", f"eval.seeds=[{seed}]")
        return [*self.base, *(() if setting is None else self.settings[setting]), *seeds]

    def config(self, setting: str | None, seed: int) -> TextSettings:
        """The configuration of a run; `ValueError` as for the command line."""
        return compose(TextSettings, self.words(setting, seed), CONFIGS, "text")

    def timed(self, setting: str, steps: int) -> "tuple[Study, str]":
        """The study with `setting` once more, under a name of its own, with so many updates."""
        name = f"{setting}, {steps} updates"
        return replace(self, settings={**self.settings, name: (*self.settings[setting], f"train.steps={steps}")}), name

    def rounds(self, setting: str, seed: int) -> list[TextSettings]:
        """The configurations of the rounds of a run, itself where it has none."""
        config = self.config(setting, seed)
        return compose_rounds(config, self.words(setting, seed), CONFIGS, "text", Path("outputs")) or [config]


def load_study(name: str) -> Study:
    """The study of that name in `configs/study/`, or in the YAML file of that path, with every setting's configuration checked.

    Raises `ValueError` that names the file and what is wrong with it.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in STUDIES.glob("*.yaml")))
        raise ValueError(f"study={name!r} is impossible: allowed are {known}, or the path of a .yaml file")
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        study = _read(path.stem, plain)
        for setting in study.settings:
            study.rounds(setting, 0)
        if study.source:
            study.law()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _read(name: str, plain: Any) -> Study:
    allowed = ("source", "sequences", "base", "recipe", "settings", "teacher_seed")
    unknown = set(plain) - set(allowed)
    if unknown or not plain.get("settings"):
        raise ValueError(
            f"allowed keys are {', '.join(allowed)}, and settings must name at least one; found {', '.join(plain)}"
        )
    settings = {str(key): tuple(words or ()) for key, words in plain["settings"].items()}
    source = plain.get("source", {})
    if source and source.get("kind") not in _SOURCES:
        raise ValueError(f"source.kind={source.get('kind')!r} is impossible: allowed are {', '.join(_SOURCES)}")
    if plain["recipe"] not in settings:
        raise ValueError(f"recipe={plain['recipe']!r} is impossible: allowed are {', '.join(settings)}")
    sequences = plain.get("sequences", Study.sequences)
    base, teacher_seed = tuple(plain.get("base", ())), plain.get("teacher_seed")
    return Study(name, base, settings, plain["recipe"], source, sequences, teacher_seed)

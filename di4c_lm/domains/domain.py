"""What a run must know of its kind of data, and nothing else: everything that a run does is in `di4c_lm.runs.recipe`.

A domain is a folder: `domain.py` fulfils the contract below, `settings.py` holds its settings, and its model, what is saved, loaded and
sampled, stands in `domain.py` or a file of its own. `DOMAINS` names the three that come with the package.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from di4c_lm.core.files import read_json, write_json
from di4c_lm.core.settings import build, to_dict
from di4c_lm.data.batches import Source, Stream
from di4c_lm.processes.process import Process
from di4c_lm.samplers.trajectory import name_of
from di4c_lm.samplers.usual import resolved
from di4c_lm.training.distributed import World

# In a run's folder. `student` holds the averaged weights, `student_raw` the others, where a next round wants them.
SETTINGS, PARTS, TEACHER, STUDENT, STUDENT_RAW = "config.yaml", "parts.json", "teacher", "student", "student_raw"
DOMAINS = {  # name: the module that holds it as `DOMAIN`
    "text": "di4c_lm.domains.text.domain",
    "cifar10": "di4c_lm.domains.pixels.domain",
    "imagenet": "di4c_lm.domains.codes.domain",
}

ModelT = TypeVar("ModelT", bound="Model")


@runtime_checkable
class Model(Protocol):
    """A denoiser with what belongs to it (tokenizer, chain, VQGAN): a dataclass, so that a student takes its teacher's place in it."""

    @property
    def denoiser(self) -> Any:
        """The network."""
        ...

    @property
    def process(self) -> Process:
        """The process whose x_t the network reads."""
        ...

    def save_pretrained(
        self, folder: Path | str, state: Mapping[str, Tensor] | None = None, *, backbone: str | None = None
    ) -> None:
        """Write the model; `state` holds the weights where the network's own are not meant.

        With `backbone`, the path of its teacher as seen from `folder`, a mixture over a frozen teacher is written without it.
        """
        ...

    @classmethod
    def from_pretrained(cls: type[ModelT], source: Path | str, *, device: torch.device | str = "cpu") -> ModelT:
        """What `save_pretrained` wrote, in eval mode. Raises `ValueError` for what it did not write."""
        ...


@runtime_checkable
class Data(Protocol):
    """What a run learns from."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that shapes what a network learns from it."""
        ...

    def source(self, seed: int) -> Source | Stream:
        """The training sequences, in the order of `seed`."""
        ...

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """Those from the beginning of `source(seed)`."""
        ...

    def save(self, folder: Path) -> None:
        """Leave in a run's folder what measuring its models takes and could not be read again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a teacher of the domain is made where none is given."""

    objective: Any  # its settings
    sections: tuple[str, ...]  # of the settings: those that shape it, beside `teacher`
    ema_decay: float = 0.999
    zero_gates: bool = (
        False  # a fresh network's gates are 0, where neither its blocks nor λ matter: a random teacher's are not
    )


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run's folder, its settings, and the folders of its models: teacher, if there was one, and student; or those of its rounds."""

    domain: "Domain"
    folder: Path
    settings: Any
    models: Mapping[str, Path]

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """A finished run, or chain of rounds, from its folder. Raises `ValueError` where the folder lacks a part, naming it."""
        parts = read_json(folder / PARTS) if (folder / PARTS).is_file() else {}
        models = parts.get("models", {STUDENT: STUDENT})
        absent = [name for name in (SETTINGS, PARTS, *models.values()) if not (folder / name).exists()]
        if absent:
            raise ValueError(f"{folder}: expected the folder of a finished run, but it has no {', '.join(absent)}")
        try:
            domain = find_domain(str(parts.get("domain")))
        except ValueError as error:
            raise ValueError(f"{folder / PARTS}: {error}") from None
        paths = {name: folder / path for name, path in models.items()}
        return cls(domain=domain, folder=folder, settings=read_settings(domain, folder), models=paths)

    def write(self) -> None:
        """Note in the folder of what `read` should find there; the settings are there already."""
        models = {name: os.path.relpath(path, self.folder) for name, path in self.models.items()}
        write_json(self.folder / PARTS, {"domain": self.domain.name, "models": models})


def sampling(settings: Any, name: str, models: Mapping[str, Any]) -> dict[str, Any]:
    """How the model `name` of a run is sampled, as its `sample` takes it; of a hybrid the last steps are the run's teacher's."""
    teacher = models.get(TEACHER) if settings.decoding.hybrid_last and name != TEACHER else None
    decoding = to_dict(settings.decoding) | ({} if teacher else {"hybrid_last": 0})
    return {"sampler": resolved(settings.sampler, models[name]), "teacher": teacher, **decoding}


def sampling_facts(settings: Any, model: Any) -> dict[str, Any]:
    """The same for a report's manifest: the sampler's name, its settings and those of decoding."""
    sampler = resolved(settings.sampler, model)
    return {"sampler": name_of(sampler), "settings": to_dict(sampler) | to_dict(settings.decoding)}


@runtime_checkable
class Domain(Protocol):
    """One kind of data with its networks. Each method raises `ValueError` for input that does not fit."""

    name: str  # as in `DOMAINS`
    settings: type[Any]  # the dataclass of a run's settings
    model: type[Any]  # the class of its models, each a `Model`
    pretraining: Pretraining  # how a teacher is trained where none is given

    def checks(self, settings: Any) -> Mapping[str, Callable[[], object]]:
        """By key what can be told of paths before anything is built: each raises `ValueError` or `OSError` where a run cannot go."""
        ...

    def data(self, settings: Any, world: World, cache_dir: Path) -> Data:
        """Ready to be read. All ranks call it."""
        ...

    def network(self, settings: Any, data: Any) -> nn.Module:
        """A fresh network; its weights are drawn from the global generator."""
        ...

    def read(self, path: Path | str, settings: Any, data: Any) -> Model:
        """A teacher in any format of the domain, checked against the data."""
        ...

    def wrap(self, network: Any, settings: Any, data: Any) -> Model:
        """The model of a network that was made here."""
        ...

    def report(self, run: FinishedRun, settings: Any = None, data: Any = None) -> str:
        """Measure the models of a run, write the report into its folder, and return its table.

        `settings` are those of the report, by default what the run's own say; `data` spares reading it again.
        """
        ...


def read_settings(domain: Domain, folder: Path) -> Any:
    """The settings of the run in `folder`. Raises `ValueError` for those that are not the domain's."""
    import yaml

    path = folder / SETTINGS
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError(f"expected a mapping of settings, found {type(plain).__name__}")
        return build(domain.settings, plain)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not the settings of a run on {domain.name}: {error}") from error


def find_domain(name: str) -> Domain:
    """The domain called `name`. Raises `ValueError` for one that there is not."""
    if name not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {name!r}")
    return importlib.import_module(DOMAINS[name]).DOMAIN


def find_run(run: str | None, outputs: str) -> Path:
    """The folder `run`, or the newest under `outputs` that has exported a student.

    Raises `ValueError` that names the folder and what was expected in it.
    """
    exported = f"{STUDENT}/model.safetensors"
    if run is not None:
        if not (Path(run) / exported).is_file():
            raise ValueError(f"run={run!r}: expected a run's folder with {exported}; there is none")
        return Path(run)
    runs = [path for path in Path(outputs).glob(f"*/{exported}") if path.is_file()]
    if not runs:
        raise ValueError(
            f"outputs={outputs!r} holds no finished run (a folder with {exported}): "
            "make one with `di4c train`, or name one with run=<folder>"
        )
    return max(runs, key=lambda path: path.stat().st_mtime).parents[1]

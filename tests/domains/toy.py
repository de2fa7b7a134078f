"""A domain in one file: a dozen states, sequences of eight that count upwards by steps of one or two, a network of one block."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import load_checkpoint
from di4c_lm.core.settings import choice, section, setting
from di4c_lm.data.batches import PackedSource
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.settings import RunSettings, TeacherConfig, TeacherPretrainConfig
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample
from di4c_lm.training.distributed import World
from di4c_lm.training.settings import OptimConfig, RunConfig, TrainConfig

STATES, LENGTH = 12, 8


@section
class ToyEval:
    """The closing report."""

    skip: bool = setting(False)
    num_samples: int = setting(16)
    steps: tuple[int, ...] = setting((1, 4))


@section
class ToySettings(RunSettings):
    """One run on counting sequences."""

    run: RunConfig = setting(RunConfig(device="cpu", threads=1), identity=False)
    sequences: int = setting(64)
    model: DitConfig = setting(DitConfig(hidden_size=8, num_blocks=1, num_heads=1, cond_dim=4))
    mixture: MixtureSettings = choice(MIXTURES, ClassChainSettings(codebook_size=4))
    objective: Any = choice(OBJECTIVES, Likelihood(num_lambdas=4))
    optim: OptimConfig = setting(OptimConfig(lr=1e-2, warmup_steps=1, ema_decay=0.5))
    train: TrainConfig = setting(TrainConfig(steps=4, micro_batch_size=4, log_every=1, save_every=0))
    teacher: TeacherConfig = setting(TeacherConfig(pretrain=TeacherPretrainConfig(steps=3, batch_size=4)))
    eval: ToyEval = setting(ToyEval(), identity=False)


@dataclass(frozen=True, kw_only=True)
class ToyModel:
    """A network on the states and MASK."""

    denoiser: Any

    @property
    def process(self) -> MaskedProcess:
        return MaskedProcess(self.denoiser.mask_id)

    def save_pretrained(
        self, folder: Path | str, state: Mapping[str, Tensor] | None = None, *, backbone: str | None = None
    ) -> None:
        own.save(folder, self.denoiser, length=LENGTH, state=state, backbone=backbone)

    @classmethod
    def from_pretrained(cls, source: Path | str, *, device: torch.device | str = "cpu") -> "ToyModel":
        return cls(denoiser=load_checkpoint(source).to(device))

    def sample(self, num: int, steps: int, seed: int) -> Int64[Tensor, "N D"]:
        start = torch.full((num, LENGTH), self.process.mask_id)
        return sample(self.denoiser, self.process, start, uniform_grid(steps), KeyedRng(seed, torch.arange(num))).x


@dataclass(frozen=True, kw_only=True)
class ToyData:
    tokens: Int64[Tensor, "N D"]

    @property
    def fingerprint(self) -> str:
        return str(self.tokens.sum().item())

    def source(self, seed: int) -> PackedSource:
        return PackedSource(self.tokens.numpy(), seed)

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        return self.tokens

    def save(self, folder: Path) -> None:
        (folder / "toy.json").write_text(json.dumps({"sequences": len(self.tokens)}))


# --8<-- [start:domain]
class ToyDomain:
    """See `di4c_lm.domains.domain.Domain`."""

    name = "toy"
    settings = ToySettings
    model = ToyModel
    pretraining = Pretraining(objective=Mdlm(times="iid"), sections=("model",), zero_gates=True)

    def checks(self, settings: ToySettings) -> dict[str, Callable[[], object]]:
        return {}

    def data(self, settings: ToySettings, world: World, cache_dir: Path) -> ToyData:
        rng = torch.Generator().manual_seed(0)
        steps = torch.randint(1, 3, (settings.sequences, LENGTH), generator=rng)
        return ToyData(tokens=steps.cumsum(1) % STATES)

    def network(self, settings: ToySettings, data: ToyData) -> DIT:
        return DIT(settings.model, num_states=STATES + 1)

    def read(self, path: Path | str, settings: ToySettings, data: ToyData) -> ToyModel:
        return ToyModel.from_pretrained(path)

    def wrap(self, network: DIT, settings: ToySettings, data: ToyData) -> ToyModel:
        return ToyModel(denoiser=network)

    def report(self, run: FinishedRun, settings: ToyEval | None = None, data: ToyData | None = None) -> str:
        """How often a state follows the one before it as it should, a row a model and number of steps."""
        chosen, rows = settings or run.settings.eval, []
        for name, path in run.models.items():
            for steps in chosen.steps:
                x = ToyModel.from_pretrained(path).sample(chosen.num_samples, steps, seed=0)
                counted = (((x[:, 1:] - x[:, :-1]) % STATES - 1) // 2 == 0).float().mean()
                rows.append({"model": name, "steps": steps, "counted": round(counted.item(), 4)})
        (run.folder / "report").mkdir(exist_ok=True)
        (run.folder / "report" / "toy.json").write_text(json.dumps({"rows": rows}))
        return "\n".join(f"{row['model']:10} {row['steps']:3} {row['counted']:.3f}" for row in rows)


DOMAIN = ToyDomain()
# --8<-- [end:domain]

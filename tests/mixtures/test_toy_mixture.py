"""A new kind of mixture costs one file and one line of the registry: this one, of two components, trained, sampled and saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import load_checkpoint
from di4c_lm.core.settings import section, setting
from di4c_lm.data.batches import Batch
from di4c_lm.mixtures.base import Latents, Mixture, MixtureSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.base import BlockStages, Network, Rows
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng, Rng, uniform
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample

LENGTH, MASK = 4, 2


# --8<-- [start:mixture]
@section
class PairSettings(MixtureSettings):
    """λ is one of two, as likely as the other."""

    freeze_backbone: bool = setting(False, "keep the teacher's weights and train λ's alone")

    def wrap(self, network: Network) -> "Pair":
        return Pair(self, network, shares_backbone=self.freeze_backbone)


class Pair(Mixture):
    """Each component adds a vector of its own behind the blocks."""

    def __init__(self, settings: PairSettings, network: Network, *, shares_backbone: bool) -> None:
        super().__init__(settings, network, shares_backbone=shares_backbone)
        self.latent_pair = nn.Embedding(2, network.width)

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        return Latents((uniform(rng, (num_batch, num_lambdas, 1), device) * 2).long())

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        return Latents(torch.arange(2, device=device).view(1, 2, 1).expand(num_batch, -1, -1), enumerated=True)

    def drive(self, stages: BlockStages, lam: Latents) -> Rows:
        return Rows(stages.features()[:, None] + self.latent_pair(lam.value), stages.output_head)


# --8<-- [end:mixture]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> PairSettings:
    """The line of the registry."""
    monkeypatch.setitem(MIXTURES, "pair", PairSettings)
    return PairSettings()


def teacher() -> DIT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DIT(DitConfig(hidden_size=8, num_blocks=1, num_heads=1, cond_dim=4), num_states=3)
        nn.init.normal_(network.output_layer.linear.weight)  # a fresh one is 0, and says the same whatever the features
        return network


def trained(student: Any) -> Any:
    """On sequences of nothing but 0 or nothing but 1, by the likelihood."""
    objective = Likelihood(num_lambdas=2).build(student, MaskedProcess(MASK), seed=0)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 0.1)
    for step in range(60):
        ids = torch.arange(16 * step, 16 * step + 16)
        x = (ids % 2)[:, None].expand(-1, LENGTH).contiguous()
        optimizer.zero_grad()
        objective(Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids)))[0].backward()
        optimizer.step()
    return student.eval()


def samples(student: Any, count: int = 200) -> Tensor:
    """In one step."""
    x = torch.full((count, LENGTH), MASK)
    return sample(student, MaskedProcess(MASK), x, uniform_grid(1), KeyedRng(0, torch.arange(count))).x


@pytest.mark.parametrize("freeze_backbone", [False, True])
def test_a_new_kind_of_mixture_learns_what_no_product_can_say(pair: PairSettings, *, freeze_backbone: bool) -> None:
    settings = PairSettings(freeze_backbone=freeze_backbone)
    student = trained(settings.over(teacher(), torch.Generator().manual_seed(0)))
    x = samples(student)
    assert float((x == x[:, :1]).all(1).double().mean()) > 0.95, "all of a sequence is one state"
    assert 0.3 < float(x[:, 0].double().mean()) < 0.7, "either is as likely"
    x_t = torch.full((1, LENGTH), MASK)
    lam = student.training_latents(1, 2, torch.Generator(), torch.device("cpu"))
    positions = Positions.where(x_t == MASK)
    with torch.no_grad():
        reading = student(x_t, torch.ones(1), lam).read(positions, torch.zeros(LENGTH, 1, dtype=torch.int64))
    assert float(reading.joint) > float(reading.product) + 1.5, "3 log 2 nats of total correlation, nearly"


def test_it_is_saved_and_loaded_by_its_name(pair: PairSettings, tmp_path: Path) -> None:
    student = pair.over(teacher(), torch.Generator().manual_seed(0))
    own.save(tmp_path, student, length=LENGTH)
    loaded = load_checkpoint(tmp_path)
    assert isinstance(loaded, Pair) and torch.equal(samples(loaded), samples(student.eval()))

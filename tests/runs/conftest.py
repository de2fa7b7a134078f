"""Settings of runs of the toy domain, and small models of every domain."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.data.images.patch_codec import PatchCodec
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.codes.domain import CodeModel
from di4c_lm.domains.domain import DOMAINS
from di4c_lm.domains.pixels.domain import CifarModel
from di4c_lm.domains.text.model import TextModel
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.training.settings import RunConfig
from tests.domains.toy import ToySettings

TEXTS = ["the cat sat on the mat and the dog sat on the log", "one two three four five six seven eight nine ten"] * 20


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "toy", "tests.domains.toy")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ToySettings]:
    """Settings of a run in the folder `name`, with other values of sections' keys: `train={"steps": 2}`."""

    def settings(name: str = "run", cache: str = "cache", **sections: Any) -> ToySettings:
        place = RunConfig(dir=str(tmp_path / name), cache_dir=str(tmp_path / cache), device="cpu", threads=1)
        base = ToySettings(run=place)
        changed = {
            key: dataclasses.replace(getattr(base, key), **value) if isinstance(value, dict) else value
            for key, value in sections.items()
        }
        return dataclasses.replace(base, **changed)

    return settings


def noisy(denoiser: Any) -> Any:
    """The network, with weights that make something of what it reads."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return denoiser.eval()


def text_model(folder: Path, mixture: MixtureSettings) -> TextModel:
    tokenizer = load_tokenizer(DataConfig(vocab_size=300), TEXTS, folder)
    config = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
    denoiser = mixture.fresh(DIT, config, {"num_states": len(tokenizer)})
    return TextModel(denoiser=noisy(denoiser), tokenizer=tokenizer, length=12)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextModel]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return {
        "teacher": text_model(folder, NoMixture()),
        "student": text_model(folder, AdaLNSettings(distribution="codebook")),
    }


@pytest.fixture(scope="session")
def codes() -> CodeModel:
    """Codes of 4 x 6 pixels, 2 x 2 each."""
    codec = PatchCodec(torch.linspace(-1, 1, 5)[:, None].repeat(1, 4), (1, 4, 6), 2)
    config = MaskGitConfig(hidden_size=8, num_blocks=1, num_heads=2, mlp_size=8)
    return CodeModel(denoiser=noisy(MaskGit(config, num_codes=5, num_classes=3, length=6)), codec=codec)


@pytest.fixture(scope="session")
def pixels() -> CifarModel:
    config = UnetConfig(width=8, multipliers=(1, 2), res_blocks=1, dropout=0.0)
    denoiser = noisy(UNet(config, shape=(8, 8, 1), num_states=17))
    return CifarModel(
        denoiser=denoiser, chain=GaussianChain(num_states=17, rate_sigma=1.0, q_sigma=34.0, time_base=0.7)
    )

"""Models of images: there and back, draws that no batch changes, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.checkpoints import tauldr, unet
from di4c_lm.domains.pixels.model import (
    CifarModel,
    CifarSampler,
    chain_of,
    load_images,
    load_run,
    load_teacher,
    sampler_of,
)
from di4c_lm.domains.pixels.settings import ChainConfig, ChainSamplerConfig, CifarConfig, ImageDataConfig
from di4c_lm.domains.text.settings import TeacherConfig
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.tau_leaping import TauLeaping

TINY = UnetConfig(width=4, multipliers=(1,), res_blocks=1, attention_scale=-1, dropout=0.0)
CHAIN = ChainConfig(rate_sigma=1.0, time_base=0.5)


def model(shape: tuple[int, int, int] = (4, 4, 1), levels: int = 5) -> CifarModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(TINY, shape=shape, num_states=levels)
    return CifarModel(denoiser=network.eval(), chain=chain_of(CHAIN, levels))


def test_a_model_is_saved_with_its_chain(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    again = CifarModel.from_pretrained(tmp_path)
    assert again.chain == model().chain and again.shape == (4, 4, 1)
    assert torch.equal(again.sample(3, 2, seed=0)[0], model().sample(3, 2, seed=0)[0])
    weights = dataclasses.replace(unet.read(tmp_path), extra={"chain": {"rate_sigma": -1.0}})
    unet.write(tmp_path, weights)
    with pytest.raises(ValueError, match="its chain is not one of ours: .*rate_sigma must be above 0"):
        CifarModel.from_pretrained(tmp_path)


def test_images_are_drawn_for_a_report() -> None:
    settings = ChainSamplerConfig(corrections=1)
    sampler = CifarSampler(name="teacher", model=model(), settings=settings, batch_size=3)
    assert isinstance(sampler, ImageSampler)
    images, nfe = sampler.sample(5, 3, 7, None)
    assert images.shape == (5, 4, 4, 1) and images.dtype == np.uint8
    assert set(np.unique(images)) <= {0, 64, 128, 191, 255}
    assert nfe == 5
    how = sampler_of(settings, steps=3)
    whole, _ = model().sample(5, 3, seed=7, batch_size=5, **how)
    parts, _ = model().sample(5, 3, seed=7, batch_size=2, **how)
    assert torch.equal(whole, parts)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model().sample(0, 1, seed=0)


def test_settings_name_the_step() -> None:
    assert sampler_of(ChainSamplerConfig(step="leaping"), steps=3)["sampler"] == TauLeaping()
    corrected = ChainSamplerConfig(step="leaping", corrections=2, correction_size=0.5, correct_below=0.3)
    expected = PredictorCorrector(predictor=TauLeaping(), corrections=2, size=0.5, below=0.3)
    assert sampler_of(corrected, steps=3)["sampler"] == expected
    hybrid = ChainSamplerConfig(last=4, end="draw")
    assert sampler_of(hybrid, steps=3, hybrid=True) == {"sampler": Ancestral(), "end": "sample", "hybrid_last": 3}
    assert sampler_of(hybrid, steps=3)["hybrid_last"] == 0


@pytest.mark.parametrize("name", ["ancestral", "analytic", "tau_leaping", "predictor_corrector"])
def test_samplers_go_by_name(name: str) -> None:
    states, nfe = model().sample(3, 2, seed=0, sampler=name)
    assert states.shape == (3, 16) and nfe == (3 if name == "predictor_corrector" else 2)


def test_a_sampler_for_masks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sampler=confidence needs a masked process, got GaussianChain"):
        model().sample(3, 2, seed=0, sampler="confidence")


def test_a_teacher_is_read_from_a_folder_or_a_published_file(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "ours")
    tauldr.write(tmp_path / "published.pt", unet.read(tmp_path / "ours"))
    for name in ("ours", "published.pt"):
        config = CifarConfig(chain=CHAIN, teacher=TeacherConfig(kind="pretrained", path=str(tmp_path / name)))
        found = load_teacher(config, (4, 4, 1), 5)
        assert torch.equal(found.sample(2, 2, seed=0)[0], model().sample(2, 2, seed=0)[0])
    with pytest.raises(ValueError, match=r"ours: its images have .* \(4, 4, 1, 5\), the data's \(8, 8, 1, 17\)"):
        load_teacher(CifarConfig(teacher=TeacherConfig(kind="pretrained", path=str(tmp_path / "ours"))), (8, 8, 1), 17)


def test_images_of_another_size_and_half_a_run_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(6, dtype=np.int64))
    assert load_images(ImageDataConfig(source=str(tmp_path / "a.npz"), size=8), 0).train.shape == (8, 8, 3)
    with pytest.raises(ValueError, match="a.npz.*"):
        load_images(ImageDataConfig(source=str(tmp_path / "a.npz"), size=16), 0)
    with pytest.raises(ValueError, match="digits: expected images of 32 x 32 pixels"):
        load_images(ImageDataConfig(size=32), 0)
    with pytest.raises(ValueError, match="has no config.yaml, teacher, student"):
        load_run(tmp_path)

"""Models of images: there and back, draws that no batch changes, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.checkpoints import own, tauldr
from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.images.images import ImageSet, Split
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.domains.images import load_images, samplers
from di4c_lm.domains.pixels.domain import (
    DOMAIN,
    CifarModel,
    PixelData,
)
from di4c_lm.domains.pixels.settings import (
    ImageEvalConfig,
    PixelDataConfig,
    PixelSettings,
)
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.runs import recipe
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.tau_leaping import TauLeaping
from di4c_lm.samplers.trajectory import Decoding

UNET = UnetConfig(width=4, multipliers=(1,), res_blocks=1, attention_scale=-1, dropout=0.0)
CHAIN = GaussianChain(rate_sigma=1.0, time_base=0.5)


def model(shape: tuple[int, int, int] = (4, 4, 1), levels: int = 5) -> CifarModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(UNET, shape=shape, num_states=levels)
    return CifarModel(denoiser=network.eval(), chain=dataclasses.replace(CHAIN, num_states=levels))


def test_a_model_is_saved_with_its_chain(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    again = CifarModel.from_pretrained(tmp_path)
    assert again.chain == model().chain and again.shape == (4, 4, 1)
    assert torch.equal(again.sample_states(3, 2, seed=0)[0], model().sample_states(3, 2, seed=0)[0])
    weights = dataclasses.replace(own.read(tmp_path), extra={"chain": {"rate_sigma": -1.0}})
    own.write(tmp_path, weights)
    with pytest.raises(ValueError, match="its chain is not one of ours: .*rate_sigma must be above 0"):
        CifarModel.from_pretrained(tmp_path)


def test_images_are_sampled_for_a_report() -> None:
    how: dict[str, Any] = {"sampler": PredictorCorrector(), "end": "argmax"}
    images, nfe = model().images(5, 3, 7, batch_size=3, **how)
    assert images.shape == (5, 4, 4, 1) and images.dtype == np.uint8
    assert set(np.unique(images)) <= {0, 64, 128, 191, 255}
    assert nfe == 5
    whole, _ = model().sample_states(5, 3, seed=7, batch_size=5, **how)
    parts, _ = model().sample_states(5, 3, seed=7, batch_size=2, **how)
    assert torch.equal(whole, parts)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model().sample_states(0, 1, seed=0)


def settings_of(*words: str) -> PixelSettings:
    return compose(PixelSettings, words, CONFIGS, "cifar10")


def test_settings_name_the_sampler() -> None:
    assert settings_of("sampler=tau_leaping").sampler == TauLeaping()
    words = (
        "sampler=predictor_corrector",
        "sampler.predictor=tau_leaping",
        "sampler.corrections=2",
        "sampler.below=0.3",
    )
    expected = PredictorCorrector(predictor=TauLeaping(), corrections=2, below=0.3)
    assert settings_of(*words).sampler == expected
    assert settings_of("decoding.hybrid_last=2").decoding == Decoding(end="argmax", hybrid_last=2)


@pytest.mark.parametrize(
    "words, message",
    [
        (("sampler=confidence",), "sampler=confidence needs a masked process, got GaussianChain"),
        (("sampler=gibbs",), "sampler must be one of ancestral, .*, got 'gibbs'"),
        (("sampler.step=leaping",), "sampler.step=leaping is sampler=tau_leaping now"),
        (("sampler.last=2",), "sampler.last is decoding.hybrid_last now"),
        (("sampler.end=draw",), "sampler.end=draw is decoding.end=sample now"),
        (("sampler.corrections=2",), "sampler=predictor_corrector"),
        (("decoding.noise=legacy_fp32",), "decoding.noise must be exact but for"),
        (("decoding.guidance=2",), "where there are no classes"),
        (("chain.num_states=9",), "where the data says how many levels there are"),
    ],
)
def test_what_a_sampler_cannot_be_is_said_before_anything_is_loaded(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(*words)


@pytest.mark.parametrize("name", ["ancestral", "analytic", "tau_leaping", "predictor_corrector"])
def test_samplers_go_by_name(name: str) -> None:
    states, nfe = model().sample_states(3, 2, seed=0, sampler=name)
    assert states.shape == (3, 16) and nfe == (3 if name == "predictor_corrector" else 2)


def test_a_sampler_for_masks_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sampler=confidence needs a masked process, got GaussianChain"):
        model().sample_states(3, 2, seed=0, sampler="confidence")


def blank(shape: tuple[int, int, int], levels: int) -> PixelData:
    images, labels = np.zeros((2, *shape), dtype=np.uint8), np.zeros(2, dtype=np.int64)
    one = ImageSet(images=images, labels=labels, classes=("x",), name="blank", levels=levels)
    return PixelData(images=Split(one, one), flip=False)


def test_a_teacher_is_read_from_a_folder_or_a_published_file(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "ours")
    tauldr.write(tmp_path / "published.pt", own.read(tmp_path / "ours"))
    for name in ("ours", "published.pt"):
        config = PixelSettings(chain=CHAIN)
        found = DOMAIN.read(tmp_path / name, config, blank((4, 4, 1), 5))
        assert torch.equal(found.sample_states(2, 2, seed=0)[0], model().sample_states(2, 2, seed=0)[0])
    with pytest.raises(ValueError, match=r"ours: its images have .* \(4, 4, 1, 5\), the data's \(8, 8, 1, 17\)"):
        DOMAIN.read(tmp_path / "ours", PixelSettings(), blank((8, 8, 1), 17))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(6, dtype=np.int64))
    assert load_images(
        PixelSettings(data=PixelDataConfig(kind="files", path=str(tmp_path / "a.npz"), size=8))
    ).train.shape == (8, 8, 3)
    with pytest.raises(ValueError, match="a.npz.*"):
        load_images(PixelSettings(data=PixelDataConfig(kind="files", path=str(tmp_path / "a.npz"), size=16)))
    with pytest.raises(ValueError, match="digits: expected images of 32 x 32 pixels"):
        load_images(PixelSettings(data=PixelDataConfig(size=32)))


TINY = (
    "model.width=4",
    "model.multipliers=[1]",
    "model.attention_scale=-1",
    "train.steps=2",
    "train.log_every=1",
    "train.micro_batch_size=2",
    "run.device=cpu",
    "run.threads=1",
)
HEAD = (
    "objective=di4c",
    "mixture={kind: codes, window: 16, codebook_size: 0}",
    "objective.num_lambdas=2",
    "objective.marginal_weight=0.5",
    "objective.distil_weight=1",
    "objective.consistency_weight=1",
)


def finished(folder: Path, *words: str) -> FinishedRun:
    own = [*TINY, f"run.dir={folder / 'run'}", f"run.cache_dir={folder / 'cache'}", *words]
    assert recipe.run(DOMAIN, compose(PixelSettings, own, CONFIGS, "cifar10")) == 0
    return FinishedRun.read(folder / "run")


@pytest.mark.parametrize("words", [(), ("mixture=class_chain",)])
def test_a_run_keeps_its_teacher(words: tuple[str, ...], tmp_path: Path) -> None:
    run = finished(tmp_path, "teacher.pretrain.steps=2", "teacher.pretrain.batch_size=4", "eval.skip=true", *words)
    teacher, student = samplers(run, 8, "cpu")
    first, last = (CifarModel.from_pretrained(path).denoiser.tensors() for path in run.models.values())
    assert all(torch.equal(value, last[name]) for name, value in first.items()), "the backbone is the teacher's"
    if words:
        assert float(last["latent_head.table"].softmax(1).amax(1).min()) > 0.9, "each level has its class"
    else:
        assert float(last["latent_head.out.weight"].abs().max()) > 0
    for one in (teacher, student):
        assert one.sample(3, 2, 0, None)[0].shape == (3, 8, 8, 1)
    hybrid = dataclasses.replace(
        run, settings=dataclasses.replace(run.settings, decoding=Decoding(end="argmax", hybrid_last=1))
    )
    alone, helped = samplers(hybrid, 8, "cpu")
    ours, theirs = (one.sample(3, 1, 0, None)[0] for one in (helped, alone))
    assert np.array_equal(ours, theirs), "its last call, here its only one, is the teacher's"


def test_a_run_of_latent_codes_trains_the_whole_network(tmp_path: Path) -> None:
    run = finished(tmp_path, "teacher.kind=random", "eval.skip=true", *HEAD)
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["data_marginal"] > 0 and last["consistency"] != 0


@pytest.mark.slow
def test_the_report_measures_teacher_and_student(tmp_path: Path) -> None:
    run = finished(tmp_path, "teacher.kind=random", "eval.steps=[1,2]", "eval.num_samples=48", "eval.bootstrap=50")
    written = {path.name for path in (run.folder / "report").iterdir()}
    assert written == {"images.json", "images.csv", "images.html", "images.png", "samples.png", "training.png"}
    rows = json.loads((run.folder / "report" / "images.json").read_text())["rows"]
    assert {"teacher", "student"} < {row["model"] for row in rows}


def test_impossible_settings_of_the_report_are_refused_with_the_others() -> None:
    with pytest.raises(ValueError, match="eval.steps must be"):
        PixelSettings(eval=ImageEvalConfig(steps=(0,)))


@pytest.mark.parametrize("name", ["sdtt", "mdlm"])
def test_objectives_on_masks_are_refused_with_the_settings(name: str) -> None:
    with pytest.raises(ValueError, match=f"objective must be likelihood, di4c or denoising on pixels.*got '{name}'"):
        compose(PixelSettings, [f"objective={name}"], CONFIGS, "cifar10")

"""The classifier whose features stand in for Inception's: it learns, it is cached whole, and it says what it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.data.images.images import Split
from di4c_lm.measure.images.classifier import NOTE, Classifier, ClassifierConfig, classifier_features
from di4c_lm.measure.images.features import FeatureNet
from tests.measure.pictures import real_images

CONFIG = ClassifierConfig(features=16, steps=80, batch_size=16, lr=1e-2)
IMAGES, HELD_OUT = real_images(60, seed=0), real_images(30, seed=1)


def made(cache: Path, images=IMAGES, config: ClassifierConfig = CONFIG):
    return classifier_features(Split(images, HELD_OUT), cache_dir=cache, config=config, progress=False)


def test_it_learns_and_says_what_it_is(tmp_path: Path) -> None:
    net = made(tmp_path)
    assert isinstance(net, FeatureNet) and net.facts["held_out_accuracy"] > 0.9 and net.facts["kind"] == NOTE
    found = net.embed(IMAGES.as_bytes())
    assert found.features.shape == (60, 16) and found.probabilities is not None
    assert np.allclose(found.probabilities.sum(1), 1)
    assert (found.probabilities.argmax(1) == IMAGES.labels).mean() == net.facts["accuracy"]


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    net = made(tmp_path)
    whole = net.embed(IMAGES.as_bytes()).features
    assert np.allclose(whole[7:8], net.embed(IMAGES.as_bytes()[7:8]).features, atol=1e-6)


def test_it_is_trained_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, second = made(tmp_path), made(tmp_path)
    assert caplog.text.count("training a classifier") == 1 and first.facts == second.facts
    assert np.array_equal(first.embed(IMAGES.as_bytes()).features, second.embed(IMAGES.as_bytes()).features)


def test_training_is_seeded_and_leaves_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first.facts["sha256"] == second.facts["sha256"] and torch.equal(torch.get_rng_state(), before)


def test_other_images_labels_and_settings_make_another(tmp_path: Path) -> None:
    few = dataclasses.replace(CONFIG, steps=1)
    for images in (
        IMAGES,
        dataclasses.replace(IMAGES, images=255 - IMAGES.images),
        dataclasses.replace(IMAGES, labels=IMAGES.labels[::-1].copy()),
        dataclasses.replace(IMAGES, classes=(*IMAGES.classes, "another")),
    ):
        made(tmp_path, images, few)
    made(tmp_path, IMAGES, dataclasses.replace(few, seed=1))
    assert len(list(tmp_path.glob("classifiers/*/model.safetensors"))) == 5


def test_one_class_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 classes, found 1: .*features=inception"):
        made(tmp_path, dataclasses.replace(IMAGES, labels=np.zeros(60, np.int64)))


def test_a_damaged_entry_is_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = made(tmp_path)
    (weights,) = tmp_path.glob("classifiers/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    assert made(tmp_path).facts["sha256"] == first.facts["sha256"]
    assert "model.safetensors has 50 bytes" in caplog.text


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (3, 3, 1), (5, 64, 3)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    planes = torch.zeros(2, channels, height, width, dtype=torch.uint8)
    features, logits = Classifier(channels, 5, 16).eval()(planes)
    assert features.shape == (2, 16) and logits.shape == (2, 5)


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="steps must be .*, got 0"):
        ClassifierConfig(steps=0)

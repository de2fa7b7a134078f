"""Networks that read images: a folder of a vision model, Inception, and what is said where they are missing."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from di4c_lm.data.images.images import ImageSet, Split
from di4c_lm.measure.images.features import INCEPTION_FILE, FeatureNet, folder_features, inception_features
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun, feature_net

IMAGES = np.random.default_rng(0).integers(256, size=(5, 10, 12, 3)).astype(np.uint8)


@pytest.fixture
def vision_model(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_a_vision_model(vision_model: Path) -> None:
    net = folder_features(vision_model)
    found = net.embed(IMAGES)
    assert isinstance(net, FeatureNet) and found.features.shape == (5, 16) and found.probabilities is None
    assert len(net.facts["sha256"]) == 64 and net.facts["image_size"] == (16, 16) and "ViT" in net.facts["kind"]
    assert np.allclose(found.features[3:4], net.embed(IMAGES[3:4]).features, atol=1e-5)


def test_its_own_standardisation_is_used(vision_model: Path) -> None:
    plain = folder_features(vision_model).embed(IMAGES).features
    told = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (vision_model / "preprocessor_config.json").write_text(json.dumps(told))
    assert not np.allclose(plain, folder_features(vision_model).embed(IMAGES).features)


def test_grey_images_are_read_as_grey_colours(vision_model: Path) -> None:
    net = folder_features(vision_model)
    grey = IMAGES[..., :1]
    assert np.allclose(net.embed(grey).features, net.embed(np.repeat(grey, 3, 3)).features)


def test_settings_name_the_network(vision_model: Path) -> None:
    images = ImageSet(images=IMAGES, labels=np.zeros(5, np.int64), classes=("x",), name="noise")
    place: dict[str, Any] = {"folder": vision_model, "cache_dir": vision_model}
    facts: dict[str, Any] = {"samplers": (), "config": {}, "checkpoints": {}}
    run = ImageRun(images=Split(images, images), **place, **facts)
    net = feature_net(run, ImageReportConfig(features=str(vision_model)))
    assert net.facts["name"] == str(vision_model)


def test_no_images_are_named(vision_model: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        folder_features(vision_model).embed(IMAGES[:0])


@pytest.mark.parametrize(
    "kind, told", [("absent", "found no config.json"), ("no weights", "found: "), ("text", "reads input_ids")]
)
def test_a_folder_that_is_no_vision_model(kind: str, told: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    if kind == "no weights":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    if kind == "text":
        small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
        BertModel(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"features=.*{told}"):
        folder_features(tmp_path)


def test_missing_inception_says_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"no weights at {tmp_path}.*{INCEPTION_FILE}.*none are downloaded.*https.*classifier"
    ):
        inception_features()


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity, whose other extractors want torchvision; a stand-in where it is absent."""
    if "torchvision" not in sys.modules:
        for name in ("torchvision", "torchvision.transforms", "torchvision.datasets", "torchvision.models"):
            monkeypatch.setitem(sys.modules, name, MagicMock())
    pytest.importorskip("torch_fidelity", exc_type=ImportError)


@pytest.mark.usefixtures("fidelity")
def test_damaged_inception_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"none")
    with pytest.raises(ValueError, match="weights.pth holds no Inception weights"):
        inception_features(file)


@pytest.mark.slow
@pytest.mark.usefixtures("fidelity")
def test_inception_with_weights_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module  # pyright: ignore[reportMissingImports]

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        blank = module.FeatureExtractorInceptionV3("blank", ["2048"])
    torch.save(blank.state_dict(), tmp_path / "weights.pth")
    net = inception_features(tmp_path / "weights.pth")
    found = net.embed(IMAGES[:2])
    assert found.features.shape == (2, 2048) and found.probabilities is not None
    assert found.probabilities.shape == (2, 1008) and np.allclose(found.probabilities.sum(1), 1)

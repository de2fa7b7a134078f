"""Kinds of mixture by name, there and back, and as checkpoints of earlier versions state them."""

from typing import Any

import pytest

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.registry import MIXTURES, legacy_settings, plain_settings, read_settings
from di4c_lm.mixtures.token import TokenSettings


@pytest.mark.parametrize("kind", MIXTURES)
def test_settings_there_and_back(kind: str) -> None:
    settings = MIXTURES[kind]()
    plain = plain_settings(settings)
    assert plain["kind"] == kind and read_settings(plain) == settings


@pytest.mark.parametrize(
    "latent, expected",
    [
        (None, NoMixture()),
        ({}, TokenSettings()),
        ({"codebook_size": 8, "dim": 5, "window": 3}, TokenSettings()),  # keys of other kinds had no effect
        ({"law": "stratified", "path": "adaln", "inject_at": 1}, AdaLNSettings(distribution="stratified", inject_at=1)),
        ({"law": "gaussian", "dim": 3}, TokenSettings(distribution="gaussian", dim=3)),
        (
            {"law": "codebook", "path": "adaln", "codebook_size": 4, "trunk": "frozen"},
            AdaLNSettings(distribution="codebook", codebook_size=4, freeze_backbone=True),
        ),
        (
            {"law": "codebook", "path": "head", "codebook_size": 4, "window": 2, "tie": "none", "weights": "uniform"},
            CodesSettings(codebook_size=4, window=2, ties="none", weights="uniform"),
        ),
        (
            {
                "law": "codebook",
                "path": "classes",
                "codebook_size": 512,
                "relations": 2,
                "sweeps": 3,
                "trunk": "frozen",
            },
            ClassChainSettings(codebook_size=512, relations=2, sinkhorn_iterations=3, freeze_backbone=True),
        ),
    ],
)
def test_earlier_settings_are_read(latent: dict[str, Any] | None, expected: Any) -> None:
    assert legacy_settings(latent) == expected


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(
        ValueError, match="mixture must be one of none, token, adaln, codes, class_chain, sequential, got 'head'"
    ):
        read_settings({"kind": "head"})
    with pytest.raises(ValueError, match="window is no key"):
        read_settings({"kind": "token", "window": 1})
    with pytest.raises(ValueError, match="latent must have the keys law, path, .*got colour"):
        legacy_settings({"colour": 1})
    with pytest.raises(ValueError, match="latent.path must be token, adaln, head or classes, got 'side'"):
        legacy_settings({"path": "side"})
    with pytest.raises(ValueError, match="distribution must be one of uniform"):
        legacy_settings({"law": "cauchy"})

"""The kinds of mixture by name, and the settings that older checkpoints hold."""

from collections.abc import Mapping
from typing import Any

from di4c_lm.core.settings import build, kind_of, to_dict
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings

MIXTURES: dict[str, type[MixtureSettings]] = {
    "none": NoMixture,
    "token": TokenSettings,
    "adaln": AdaLNSettings,
    "codes": CodesSettings,
    "class_chain": ClassChainSettings,
    "sequential": SequentialSettings,
}


def plain_settings(settings: MixtureSettings) -> dict[str, Any]:
    """The settings with their kind, JSON-ready, for `read_settings`."""
    return {"kind": kind_of(MIXTURES, settings), **to_dict(settings)}


def read_settings(plain: Mapping[str, Any]) -> MixtureSettings:
    """The settings that `plain_settings` gave. Raises `ValueError` for an unknown kind, key or value."""
    kind = plain.get("kind")
    if kind not in MIXTURES:
        raise ValueError(f"mixture must be one of {', '.join(MIXTURES)}, got {kind!r}")
    return build(MIXTURES[kind], {key: value for key, value in plain.items() if key != "kind"})


def legacy_settings(latent: Mapping[str, Any] | None) -> MixtureSettings:
    """The settings in the `latent` of a checkpoint of format 1. Raises `ValueError` for values that are none of them."""
    if latent is None:
        return NoMixture()
    known = {**_LEGACY, **latent}
    if set(known) != set(_LEGACY):
        raise ValueError(f"latent must have the keys {', '.join(_LEGACY)}, got {', '.join(sorted(latent))}")
    kept = {"init_scale": known["init_scale"], "freeze_backbone": known["trunk"] == "frozen"}
    size = {"codebook_size": known["codebook_size"]}
    if known["path"] == "head":
        of_codes = {"window": known["window"], "ties": known["tie"], "weights": known["weights"]}
        return build(CodesSettings, {**kept, **size, **of_codes})
    if known["path"] == "classes":
        of_chain = {"relations": known["relations"], "sinkhorn_iterations": known["sweeps"]}
        return build(ClassChainSettings, {**kept, **size, **of_chain})
    if known["path"] not in ("token", "adaln"):
        raise ValueError(f"latent.path must be token, adaln, head or classes, got {known['path']!r}")
    own = {"distribution": known["law"], "inject_at": known["inject_at"]}
    own |= {"dim": known["dim"]} if known["law"] == "gaussian" else {}
    own |= size if known["law"] == "codebook" else {}
    return build(MIXTURES[known["path"]], {**kept, **own})


_LEGACY: dict[str, Any] = {
    "law": "uniform",
    "path": "token",
    "inject_at": 0,
    "dim": 1,
    "codebook_size": 16,
    "init_scale": 0.02,
    "window": 0,
    "tie": "chain",
    "weights": "context",
    "relations": 1,
    "sweeps": 2,
    "trunk": "train",
}

"""tauLDR's files and our own U-Net folders: there and back, and what is refused."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.checkpoints import own, tauldr
from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.unet import UNet, UnetConfig

SHAPE, STATES = (8, 8, 3), 16


def network(mixture: MixtureSettings = NoMixture(), **settings: Any) -> Any:  # noqa: B008
    model = UnetConfig(**{"width": 8, "multipliers": (1, 2), "res_blocks": 1, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = mixture.fresh(UNet, model, {"shape": SHAPE, "num_states": STATES})
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def read(path: Path, **options: Any) -> Weights:
    return tauldr.read(path, Hints(**{"shape": SHAPE, "num_states": STATES, **options}))


@pytest.mark.parametrize("name", ["tauldr_net", "tauldr_net_lam"])
def test_published_files_there_and_back(shared: Path, tmp_path: Path, name: str) -> None:
    found = read(shared / "golden" / f"{name}.ckpt.pt")
    assert found.mixture == (TokenSettings() if name == "tauldr_net_lam" else NoMixture())
    assert found.model == UnetConfig(width=8, multipliers=(1, 2), res_blocks=1, attention_scale=1)
    tauldr.write(tmp_path / "again.pt", found)
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    first = torch.load(shared / "golden" / f"{name}.ckpt.pt", weights_only=True)["model"]
    assert list(again) == list(first)
    assert all(torch.equal(a, b) for a, b in zip(again["ema_shadow_params"], first["ema_shadow_params"], strict=True))
    own.write(tmp_path / "ours", found)
    ours = read_checkpoint(tmp_path / "ours", "pixels")
    assert (ours.model, ours.mixture, ours.sizes) == (found.model, found.mixture, found.sizes)
    assert all(torch.equal(ours.tensors[key], tensor) for key, tensor in found.tensors.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"multipliers": (1, 1, 1), "res_blocks": 2},
        {"multipliers": (2,), "attention_scale": 0},
        {"multipliers": (1, 3), "attention_scale": -1},
    ],
)
def test_any_architecture_is_read_off_the_tensors_and_raw_and_average_stay_apart(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    net = network(TokenSettings(), **settings)
    average = Weights.of(net)
    raw = {key: tensor + 1 for key, tensor in net.tensors().items()}
    tauldr.write(tmp_path / "a.pt", average, raw=raw)
    for which, expected in (("ema", average.tensors), ("raw", raw)):
        found = read(tmp_path / "a.pt", weights=which)
        assert dataclasses.replace(found.model, dropout=0.1) == net.config
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in expected.items())
        assert list(found.build("a").tensors()) == list(net.tensors())


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tauldr.write(path, Weights.of(network()))
    whole = torch.load(path, weights_only=True)["model"]

    def refused(change: dict[str, Any], message: str, **options: Any) -> None:
        state = {key: value for key, value in {**whole, **change}.items() if value is not None}
        torch.save({"model": state}, path)
        with pytest.raises(ValueError, match=rf"(?s)a\.pt: .*{message}"):
            read(path, **options)

    refused(
        {"net.middle_modules.1.NIN_0.W": None}, "1 tensors do not fit the network:\n  missing: middle_modules.1.NIN_0.W"
    )
    refused({"net.middle_modules.1.NIN_0.W": torch.zeros(3)}, "misshapen")
    refused({"net.strange": torch.zeros(3)}, "unknown: strange")
    refused({"strange": torch.zeros(3)}, r"expected tensors named net\.\*, .*found \['strange'\]")
    refused({"net.input_conv.weight": None}, r"found no net\.input_conv\.weight")
    refused({"ema_shadow_params": whole["ema_shadow_params"][1:]}, "expected ema_shadow_params to be a list of 144")
    refused(
        {"ema_shadow_params": [torch.zeros(1)] * 144},
        "expected ema_shadow_params to hold the average of temb_modules.0.weight",
    )
    refused({}, "shape must be rows, columns, channels", shape=(7, 8, 3))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.pt: expected a whole file of torch\.save"):
        read(path)
    path.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(ValueError, match=r"a\.pt: .*carry code, which is refused"):
        read(path)
    with pytest.raises(ValueError, match=r"absent\.pt: expected a file of torch\.save, found nothing"):
        read(tmp_path / "absent.pt")
    codebook = Weights.of(network(TokenSettings(distribution="codebook")))
    with pytest.raises(ValueError, match=r"a tauLDR file must have mixture=token"):
        tauldr.write(path, codebook)


def test_our_folder_refuses_what_is_not_ours(tmp_path: Path) -> None:
    own.save(tmp_path, network())
    config = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"di4c_lm.UNet"', '"di4c_lm.VqGan"', "expected architecture=di4c_lm.DIT or"),
        ('"num_states": 16', '"num_states": 1', "num_states must be an integer of at least 2, got 1"),
        ("8,\n    8,", "8,\n    0,", "shape must be three integers of at least 1"),
        ('"width": 8', '"width": 9', "the settings of the network are not ours"),
        ('"width": 8', '"width": 16', "tensors do not fit"),
    ):
        assert old in config
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path, "pixels")

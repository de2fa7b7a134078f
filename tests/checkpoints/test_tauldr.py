"""tauLDR's files and our own U-Net folders: there and back, and what is refused."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.checkpoints import tauldr, unet
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UNet, UnetConfig

SHAPE, STATES = (8, 8, 3), 16


def network(latent: LatentConfig | None = None, **settings: Any) -> UNet:
    model = UnetConfig(**{"width": 8, "multipliers": (1, 2), "res_blocks": 1, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = UNet(model, shape=SHAPE, num_states=STATES, latent=latent)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def read(path: Path, **options: Any) -> unet.UnetWeights:
    return tauldr.read(path, **{"shape": SHAPE, "num_states": STATES, **options})


@pytest.mark.parametrize("name", ["tauldr_net", "tauldr_net_lam"])
def test_published_files_there_and_back(shared: Path, tmp_path: Path, name: str) -> None:
    found = read(shared / "golden" / f"{name}.ckpt.pt")
    assert (found.latent is not None) == (name == "tauldr_net_lam")
    assert found.model == UnetConfig(width=8, multipliers=(1, 2), res_blocks=1, attention_scale=1)
    tauldr.write(tmp_path / "again.pt", found)
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    first = torch.load(shared / "golden" / f"{name}.ckpt.pt", weights_only=True)["model"]
    assert list(again) == list(first)
    assert all(torch.equal(a, b) for a, b in zip(again["ema_shadow_params"], first["ema_shadow_params"], strict=True))
    unet.write(tmp_path / "ours", found)
    ours = unet.read(tmp_path / "ours")
    assert (ours.model, ours.latent, ours.shape, ours.num_states) == (found.model, found.latent, SHAPE, STATES)
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
    net = network(LatentConfig(), **settings)
    average = unet.UnetWeights.of(net)
    raw = {key: tensor + 1 for key, tensor in net.state_dict().items()}
    tauldr.write(tmp_path / "a.pt", average, raw=raw)
    for which, expected in (("ema", average.tensors), ("raw", raw)):
        found = read(tmp_path / "a.pt", weights=which)
        assert dataclasses.replace(found.model, dropout=0.1) == net.config
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in expected.items())
        assert list(found.build("a").state_dict()) == list(net.state_dict())


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tauldr.write(path, unet.UnetWeights.of(network()))
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
    refused({"ema_shadow_params": [torch.zeros(1)] * 144}, "expected the average of temb_modules.0.weight")
    refused({}, "images of shape .7, 8, 3. .*do not fit", shape=(7, 8, 3))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.pt: expected a whole file of torch\.save"):
        read(path)
    path.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(ValueError, match=r"a\.pt: .*carry code, which is refused"):
        read(path)
    with pytest.raises(ValueError, match=r"absent\.pt: expected a file of torch\.save, found nothing"):
        read(tmp_path / "absent.pt")
    codebook = unet.UnetWeights.of(network(LatentConfig(law="codebook")))
    with pytest.raises(ValueError, match=r"lambda\.law='codebook' is impossible in a tauLDR file"):
        tauldr.write(path, codebook)


def test_our_folder_refuses_what_is_not_ours(tmp_path: Path) -> None:
    unet.write(tmp_path, unet.UnetWeights.of(network()))
    config = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"di4c_lm.UNet"', '"di4c_lm.DIT"', "expected architecture='di4c_lm.UNet'"),
        ('"num_states": 16', '"num_states": 1', "num_states=1"),
        ('"width": 8', '"width": 9', "the settings of the network are not ours"),
        ('"width": 8', '"width": 16', "tensors do not fit"),
    ):
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(ValueError, match=message):
            unet.read(tmp_path)


def test_a_student_begins_as_its_teacher() -> None:
    teacher, x_t, t = network(), torch.zeros(1, 192).long(), torch.tensor([0.5])
    student = unet.student_from_teacher(teacher, LatentConfig(), torch.Generator().manual_seed(0)).eval()
    lam = torch.rand(1, 2, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student(x_t, t, lam).features, teacher(x_t, t).features.expand(-1, 2, -1, -1))
    with pytest.raises(ValueError, match="differs from that of the teacher"):
        unet.student_from_teacher(student, LatentConfig(law="codebook"), torch.Generator())

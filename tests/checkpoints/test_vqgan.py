"""Small files laid out as Taming's `last.ckpt` and `model.yaml` are, and our folders."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from di4c_lm.checkpoints.vqgan import load_vqgan, save_vqgan
from di4c_lm.networks.vqgan import VqGan, VqganConfig
from tests.checkpoints.helpers import assert_same_tensors

CONFIG = VqganConfig(
    n_embed=6, embed_dim=3, z_channels=4, resolution=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,)
)


def network(config: VqganConfig = CONFIG) -> VqGan:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VqGan(config).eval()


def params(**ddconfig: Any) -> dict[str, Any]:
    """A YAML of Taming's, in its own words."""
    said = {
        "double_z": False, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
        "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
    }  # fmt: skip
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 0}}
    inner = {"embed_dim": 3, "n_embed": 6, "ddconfig": {**said, **ddconfig}, "lossconfig": loss}
    return {"model": {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": inner}}


def taming(folder: Path, state: dict[str, Tensor], settings: dict[str, Any] | None = None, **more: Any) -> Path:
    """A Lightning checkpoint with its discriminator and callbacks."""
    training = {"loss.discriminator.main.0.weight": torch.zeros(2, 3), "loss.logvar": torch.zeros(())}
    content = {
        "epoch": 4, "global_step": 9, "pytorch-lightning_version": "1.0.8", "state_dict": {**state, **training},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.5, 0.9)}]}], **more,
    }  # fmt: skip
    torch.save(content, folder / "last.ckpt")
    (folder / "model.yaml").write_text(yaml.safe_dump(settings or params()))
    return folder / "last.ckpt"


def says(net: VqGan) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture
def callback() -> Any:
    """A class that a checkpoint names, as Lightning's callbacks are; importing it is not needed to read the file."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind  # pyright: ignore[reportAttributeAccessIssue]
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, module if name == module.__name__ else ModuleType(name))
        yield kind


def test_a_published_checkpoint(tmp_path: Path, callback: Any) -> None:
    path = taming(tmp_path, says(network()), callbacks={callback: {"best_model_path": "x", "best": torch.ones(())}})
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    for source, config in ((path, None), (tmp_path, None), (path, tmp_path / "model.yaml")):
        loaded = load_vqgan(source, config)
        assert_same_tensors(loaded.state_dict(), says(network()))
        assert loaded.config == CONFIG and not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())


def test_there_and_back(tmp_path: Path) -> None:
    odd = VqganConfig(**{**vars(CONFIG), "norm_groups": 8, "beta": 1.0, "ch": 16})
    for index, config in enumerate((CONFIG, odd)):
        save_vqgan(tmp_path / str(index), network(config))
        loaded = load_vqgan(tmp_path / str(index))
        assert loaded.config == config
        assert_same_tensors(loaded.state_dict(), says(network(config)))


def test_golden_weights_go_through_a_checkpoint(tmp_path: Path, shared: Path) -> None:
    tensors = load_file(shared / "golden" / "vqgan.safetensors")
    settings = params(z_channels=8, resolution=16, ch_mult=[2, 1], attn_resolutions=[8])
    settings["model"]["params"] |= {"embed_dim": 8, "n_embed": 32}
    assert_same_tensors(load_vqgan(taming(tmp_path, tensors, settings)).state_dict(), tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop": "quant_conv.bias"}, "missing: quant_conv.bias 3"),
        ({"add": "decoder.more"}, "unknown: decoder.more 1"),
        ({"yaml": params(ch=64)}, "misshapen: .*conv_in.bias is 32, expected 64"),
        ({"yaml": params(double_z=True)}, "model.params.ddconfig.double_z must be False, got True"),
        ({"yaml": params(attention="none")}, "model.params are not those of a VQGAN"),
        ({"yaml": {"model": {}}}, "expected the YAML of a VQGAN with model.params.n_embed"),
        ({"cut": True}, "expected a whole file of torch.save"),
    ],
)
def test_a_broken_checkpoint_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = says(network())
    state.pop(change.get("drop", ""), None)
    if "add" in change:
        state[change["add"]] = torch.zeros(1)
    path = taming(tmp_path, state, change.get("yaml"))
    if "cut" in change:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=message) as caught:
        load_vqgan(path)
    assert str(tmp_path) in str(caught.value)


def test_without_its_yaml(tmp_path: Path) -> None:
    path = taming(tmp_path, says(network()))
    (tmp_path / "model.yaml").rename(tmp_path / "2020.yaml")
    assert load_vqgan(path).config == CONFIG  # the only one
    (tmp_path / "other.yaml").write_text("{}")
    with pytest.raises(
        ValueError, match=r"expected model.yaml or one other YAML beside last.ckpt, found 2020.yaml, other"
    ):
        load_vqgan(path)
    with pytest.raises(ValueError, match="nowhere.yaml: expected the YAML of a VQGAN, could not read it"):
        load_vqgan(path, tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="expected a file of torch.save, found nothing"):
        load_vqgan(tmp_path / "nowhere")

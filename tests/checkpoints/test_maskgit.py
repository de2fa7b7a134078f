"""Small files laid out as `MaskGIT_ImageNet_256.pth` and `maskgit-di4c-d.pth` are, and our folders of such networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from di4c_lm.checkpoints import maskgit, own
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from di4c_lm.checkpoints.weights import Weights
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from tests.checkpoints.helpers import assert_same_tensors, tiny

MODEL = MaskGitConfig(hidden_size=32, num_blocks=2, num_heads=4, mlp_size=24, dropout=0.1)
PUBLISHED = TokenSettings()
OURS = AdaLNSettings(distribution="codebook", inject_at=-1, codebook_size=4)


def network(mixture: MixtureSettings = NoMixture(), *, num_codes: int = 7, num_classes: int = 3) -> Any:  # noqa: B008
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"num_codes": num_codes, "num_classes": num_classes, "length": 9}
        return mixture.fresh(MaskGit, MODEL, sizes).eval()


def load(path: Path, **hints: Any) -> Any:
    return load_checkpoint(path, "codes", **hints)


def published(path: Path, net: Any, *, prefix: str = "", **more: Any) -> Path:
    """As MaskGIT-pytorch saves its runs, optimiser and all."""
    state = {prefix + name: tensor.clone() for name, tensor in net.tensors().items()}
    net.requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=1e-5)
    sum(p.sum() for p in net.parameters()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in state.items()}
    content = {"iter": 3, "global_epoch": 2, "model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**content, **more}, path)
    return path


def says(net: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.tensors().items()}


@pytest.mark.parametrize("mixture", [NoMixture(), PUBLISHED])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file(tmp_path: Path, mixture: MixtureSettings, prefix: str) -> None:
    expected = says(network(mixture))
    path = published(tmp_path / "student.pth", network(mixture), prefix=prefix)
    loaded = load(path, num_heads=4, num_codes=7)
    assert_same_tensors(loaded.tensors(), expected)
    assert loaded.config == MODEL and loaded.has_latents == (mixture == PUBLISHED)
    assert (loaded.num_codes, loaded.num_classes, loaded.length, loaded.training) == (7, 3, 9, False)


def test_the_published_codes_and_heads_are_known(tmp_path: Path) -> None:
    path = published(tmp_path / "teacher.pth", network(num_codes=1024, num_classes=1000))
    weights = read_checkpoint(path, "codes")
    assert weights.sizes == {"num_codes": 1024, "num_classes": 1000, "length": 9} and weights.model.num_heads == 16


@pytest.mark.parametrize("mixture", [NoMixture(), PUBLISHED, OURS])
def test_there_and_back(tmp_path: Path, mixture: MixtureSettings) -> None:
    net = network(mixture)
    weights = Weights.of(net, extra={"why": "test"})
    own.write(tmp_path / "folder", weights)
    back = read_checkpoint(tmp_path / "folder", "codes")
    assert (back.model, back.mixture, back.extra) == (MODEL, mixture, {"why": "test"})
    assert_same_tensors(back.build("folder").tensors(), net.tensors())
    if mixture is OURS:
        with pytest.raises(ValueError, match="a .pth of Di4C must have mixture=token"):
            maskgit.write(tmp_path / "student.pth", weights)
        assert not (tmp_path / "student.pth").exists()
    else:
        maskgit.write(tmp_path / "student.pth", weights)
        again = load(tmp_path / "student.pth")  # says its heads and codes itself
        assert_same_tensors(again.tensors(), net.tensors())
        assert (again.config, again.num_codes) == (MODEL, 7)
        plain = torch.load(tmp_path / "student.pth", weights_only=True)
        assert {"iter", "global_epoch", "model_state_dict", "optimizer_state_dict"} <= set(plain)


def test_golden_weights_go_through_a_published_file(tmp_path: Path, shared: Path) -> None:
    tensors = load_file(shared / "golden" / "maskgit_net_student.safetensors")
    torch.save({"iter": 0, "global_epoch": 0, "model_state_dict": tensors}, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth", num_heads=4, num_codes=16)
    assert_same_tensors(loaded.tensors(), tensors)


def broken(tmp_path: Path, change: str) -> Path:
    net, path = network(PUBLISHED), tmp_path / "x.pth"
    state = says(net)
    if change == "missing":
        del state["latent_projection.2.bias"], state["transformer.layers.1.0.norm.weight"]
    elif change == "unknown":
        state["decoder.weight"] = torch.zeros(2)
    elif change == "misshapen":
        state["bias"] = torch.zeros(9, 12)
    elif change == "integers":
        state["pos_emb"] = state["pos_emb"].long()
    elif change == "foreign":
        state = {"weight": torch.zeros(2)}
    torch.save({"model_state_dict": "none" if change == "no state" else state}, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif change == "absent":
        path.unlink()
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", "missing: latent_projection.2.bias 32\n  missing: transformer.layers.1.0.norm.weight 32|2 tensors"),
        ("unknown", "unknown: decoder.weight 2"),
        ("misshapen", "misshapen: bias is 9x12, expected 10x12"),
        ("integers", "not floating-point: pos_emb is torch.int64"),
        ("foreign", "expected the tensor tok_emb.weight of MaskGIT with 2 axes, found 1 others, such as weight"),
        ("no state", "expected 'model_state_dict', a dict of tensors"),
        ("truncated", "expected a whole file of torch.save"),
        ("absent", "expected a file, a folder or a hub name .owner/model., found nothing there"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = broken(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, num_heads=4, num_codes=7)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "told, message",
    [
        ({"num_heads": 4}, "12 tokens are codes, MASK, classes and the dropped class.*give num_codes="),
        ({"num_heads": 5, "num_codes": 7}, "num_heads must divide the width 32 of the tensors, got 5"),
        ({"num_heads": 4, "num_codes": 10}, "12 tokens leave no class beside num_codes=10"),
    ],
)
def test_what_a_file_does_not_say_must_fit(tmp_path: Path, told: dict[str, int], message: str) -> None:
    path = published(tmp_path / "x.pth", network())
    with pytest.raises(ValueError, match=message):
        load(path, **told)


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    own.save(tmp_path, tiny(), length=6)
    with pytest.raises(ValueError, match="expected architecture='di4c_lm.MaskGit', found 'di4c_lm.DIT'"):
        load(tmp_path)

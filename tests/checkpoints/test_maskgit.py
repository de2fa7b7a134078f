"""Small files laid out as `MaskGIT_ImageNet_256.pth` and `maskgit-di4c-d.pth` are, and our folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from di4c_lm.checkpoints.maskgit import MaskGitWeights, load_maskgit, read, student_of, write_folder, write_pth
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from tests.checkpoints.tiny import assert_same_tensors

MODEL = MaskGitConfig(hidden_size=32, num_blocks=2, num_heads=4, mlp_size=24, dropout=0.1)
PUBLISHED = LatentConfig(law="uniform", path="token", inject_at=0)
OURS = LatentConfig(law="codebook", path="adaln", inject_at=-1, codebook_size=4)


def network(latent: LatentConfig | None = None, *, num_codes: int = 7, num_classes: int = 3) -> MaskGit:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return MaskGit(MODEL, num_codes=num_codes, num_classes=num_classes, length=9, latent=latent).eval()


def published(path: Path, net: MaskGit, *, prefix: str = "", **more: Any) -> Path:
    """As MaskGIT-pytorch saves its runs, optimiser and all."""
    state = {prefix + name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=1e-5)
    sum(p.sum() for p in net.parameters()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in state.items()}
    content = {"iter": 3, "global_epoch": 2, "model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**content, **more}, path)
    return path


def says(net: MaskGit) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("latent", [None, PUBLISHED])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file(tmp_path: Path, latent: LatentConfig | None, prefix: str) -> None:
    expected = says(network(latent))
    path = published(tmp_path / "student.pth", network(latent), prefix=prefix)
    loaded = load_maskgit(path, num_heads=4, num_codes=7)
    assert_same_tensors(loaded.state_dict(), expected)
    assert (loaded.latent, loaded.config) == (latent, MODEL)
    assert (loaded.num_codes, loaded.num_classes, loaded.length, loaded.training) == (7, 3, 9, False)


def test_the_published_codes_and_heads_are_known(tmp_path: Path) -> None:
    path = published(tmp_path / "teacher.pth", network(num_codes=1024, num_classes=1000))
    weights = read(path)
    assert (weights.num_codes, weights.num_classes, weights.model.num_heads) == (1024, 1000, 16)


@pytest.mark.parametrize("latent", [None, PUBLISHED, OURS])
def test_there_and_back(tmp_path: Path, latent: LatentConfig | None) -> None:
    net = network(latent)
    weights = MaskGitWeights.of(net, extra={"why": "test"})
    write_folder(tmp_path / "folder", weights)
    back = read(tmp_path / "folder")
    assert (back.model, back.latent, back.extra) == (MODEL, latent, {"why": "test"})
    assert_same_tensors(back.build("folder").state_dict(), net.state_dict())
    if latent is OURS:
        with pytest.raises(ValueError, match="a .pth of Di4C knows λ only as law=uniform"):
            write_pth(tmp_path / "student.pth", weights)
        assert not (tmp_path / "student.pth").exists()
    else:
        write_pth(tmp_path / "student.pth", weights)
        again = load_maskgit(tmp_path / "student.pth")  # says its heads and codes itself
        assert_same_tensors(again.state_dict(), net.state_dict())
        assert (again.config, again.num_codes) == (MODEL, 7)
        plain = torch.load(tmp_path / "student.pth", weights_only=True)
        assert {"iter", "global_epoch", "model_state_dict", "optimizer_state_dict"} <= set(plain)


def test_golden_weights_go_through_a_published_file(tmp_path: Path, shared: Path) -> None:
    tensors = load_file(shared / "golden" / "maskgit_net_student.safetensors")
    torch.save({"iter": 0, "global_epoch": 0, "model_state_dict": tensors}, tmp_path / "x.pth")
    loaded = load_maskgit(tmp_path / "x.pth", num_heads=4, num_codes=16)
    assert_same_tensors(loaded.state_dict(), tensors)


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
        ("absent", "expected a file of torch.save, found nothing"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = broken(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_maskgit(path, num_heads=4, num_codes=7)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "told, message",
    [
        ({"num_heads": 4}, "12 tokens are codes, MASK, classes and the dropped class.*give num_codes="),
        ({"num_heads": 5, "num_codes": 7}, "num_heads=5 is impossible with the width 32 of the tensors"),
        ({"num_heads": 4, "num_codes": 10}, "12 tokens leave no class beside num_codes=10"),
    ],
)
def test_what_a_file_does_not_say_must_fit(tmp_path: Path, told: dict[str, int], message: str) -> None:
    path = published(tmp_path / "x.pth", network())
    with pytest.raises(ValueError, match=message):
        load_maskgit(path, **told)


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "di4c_lm.DIT", "format_version": 1}')
    with pytest.raises(ValueError, match="expected architecture='di4c_lm.MaskGit', found 'di4c_lm.DIT'"):
        load_maskgit(tmp_path)


@pytest.mark.parametrize("latent", [PUBLISHED, OURS])
def test_a_student_begins_as_its_teacher(latent: LatentConfig) -> None:
    teacher = network()
    before = torch.random.get_rng_state()
    student, twin, other = (student_of(teacher, latent, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    shared = {name: tensor for name, tensor in student.state_dict().items() if not is_latent(name)}
    assert_same_tensors(shared, says(teacher))
    assert_same_tensors(student.state_dict(), says(twin))
    assert student.training and all(p.requires_grad for p in student.parameters())
    fresh = [name for name in student.state_dict() if name not in shared and name.endswith("weight")]
    assert fresh and all(not torch.equal(student.state_dict()[n], other.state_dict()[n]) for n in fresh)
    again = student_of(student, latent, torch.Generator().manual_seed(5))
    assert_same_tensors(again.state_dict(), says(student))
    with pytest.raises(ValueError, match="differs from that of the teacher"):
        student_of(student, None, torch.Generator())

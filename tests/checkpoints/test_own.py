"""Our own format: bit by bit there and back, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from di4c_lm.mixtures.base import Latents, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.networks.unet import UNet, UnetConfig
from tests.checkpoints.helpers import MIXTURES, PUBLISHED, assert_same_tensors, tiny


class Seen(TorchDispatchMode):
    """In the block, the names of what is done to tensors without storage."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_meta:
            self.names.add(func.overloadpacket.__name__)
        return found


@pytest.mark.parametrize("mixture", MIXTURES)
def test_there_and_back_is_bitwise(tmp_path, mixture):
    network = tiny(mixture)
    own.save(tmp_path / "a", network, length=6, extra={"tokenizer": "abc"})
    loaded, weights = load_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "a")
    assert_same_tensors(loaded.tensors(), network.tensors())
    assert (weights.sizes["length"], weights.extra) == (6, {"tokenizer": "abc"})
    assert (loaded.config, weights.mixture) == (network.config, mixture)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("mixture", [NoMixture(), PUBLISHED])
def test_loaded_network_gives_the_same_numbers(tmp_path, mixture):
    network = tiny(mixture)
    own.save(tmp_path, network, length=6)
    x_t = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.3, 0.9])
    lam = Latents(torch.tensor([[[0.1], [0.7]], [[0.2], [0.4]]])) if network.has_latents else None
    with torch.no_grad():
        expected = network(x_t, t, lam).log_probs()
        assert torch.equal(load_checkpoint(tmp_path)(x_t, t, lam).log_probs(), expected)


def test_reading_draws_nothing_and_makes_tables_of_none(tmp_path):
    """Of tensors without storage an initialiser or a division would load PyTorch's compiler, a second or more of every command."""
    for mixture in (PUBLISHED, ClassChainSettings(codebook_size=3, freeze_backbone=False)):
        own.save(tmp_path / "a", tiny(mixture), length=6)
        weights = read_checkpoint(tmp_path / "a")
        with Seen() as seen:
            assert all(tensor.is_meta for tensor in weights.blank("a").tensors().values())
        assert seen.names and not seen.names & {"normal_", "uniform_", "div", "reciprocal", "pow", "arange"}


def test_gathered_state_is_what_is_saved_even_where_the_network_is_sharded(tmp_path):
    """Under ZeRO-3 the network's own parameters are empty; the gathered ones may be views of one flat tensor."""
    network, other = tiny(), tiny(seed=1)
    flat = torch.cat([parameter.detach().flatten() for parameter in other.parameters()])
    sizes = [parameter.numel() for parameter in other.parameters()]
    pieces = zip(other.named_parameters(), flat.split(sizes), strict=True)
    state = {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}
    for parameter in network.parameters():
        parameter.data = torch.empty(0)
    own.save(tmp_path, network, length=6, state=state)
    assert_same_tensors(load_checkpoint(tmp_path).tensors(), other.tensors())


def test_a_state_that_does_not_fit_writes_nothing(tmp_path):
    state = tiny().tensors()
    del state["blocks.0.norm1.weight"]
    state["blocks.9.norm1.weight"] = torch.ones(16)
    state["blocks.1.norm2.weight"] = torch.ones(17)
    with pytest.raises(ValueError) as caught:
        own.save(tmp_path / "a", tiny(), length=6, state=state)
    message = str(caught.value)
    assert "missing: blocks.0.norm1.weight 16" in message
    assert "unknown: blocks.9.norm1.weight 16" in message
    assert "misshapen: blocks.1.norm2.weight is 17, expected 16" in message
    assert not (tmp_path / "a").exists()


def test_half_precision_is_kept_in_the_file_and_widened_in_the_network(tmp_path):
    network = tiny().bfloat16()
    own.save(tmp_path, network, length=6)
    assert_same_tensors(own.read(tmp_path).tensors, network.tensors())
    assert_same_tensors(load_checkpoint(tmp_path).tensors(), network.float().tensors())


def test_loading_leaves_the_global_generator_alone(tmp_path):
    own.save(tmp_path, tiny(), length=6)
    before = torch.get_rng_state()
    load_checkpoint(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    own.save(tmp_path, tiny(), length=6)

    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        own.save(tmp_path, tiny(seed=1), length=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_tensors(load_checkpoint(tmp_path).tensors(), tiny().tensors())


def test_saving_again_replaces_the_two_files_and_no_other(tmp_path):
    own.save(tmp_path, tiny(), length=6)
    (tmp_path / "tokenizer.json").write_text("{}")
    own.save(tmp_path, tiny(PUBLISHED, seed=1), length=8)
    assert (tmp_path / "tokenizer.json").exists()
    weights = read_checkpoint(tmp_path)
    assert weights.sizes["length"] == 8 and weights.mixture == PUBLISHED


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        own.save(tmp_path, tiny(), length=6)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "key, value, complaint",
    [
        ("length", 0, "length must be an integer of at least 1, got 0"),
        ("num_states", "11", "num_states must be an integer of at least 2, got '11'"),
        ("format_version", 3, "format_version=2 or 1, found 3"),
        ("architecture", "GPT2", "'GPT2'"),
        ("more", 1, r"unknown keys \['more'\]"),
        ("model", {"hidden_size": 16, "depth": 3}, "depth"),
        ("model", [1], "settings of the network"),
        ("mixture", {"kind": "token", "inject_at": 7}, "inject_at must be a block below model.num_blocks = 2, got 7"),
        ("mixture", {"kind": "head"}, "mixture must be one of none, token"),
        ("num_states", 12, "vocab_embed.embedding is 11x16, expected 12x16"),
    ],
)
def test_bad_config_is_refused_by_name(tmp_path, key, value, complaint):
    own.save(tmp_path, tiny(), length=6)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match=complaint) as caught:
        own.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    own.save(tmp_path, tiny(), length=6)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated") as caught:
        load_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json: expected a JSON file, found nothing"):
        own.read(tmp_path / "nowhere")
    own.save(tmp_path, tiny(), length=6)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors: expected a safetensors file, found nothing"):
        load_checkpoint(tmp_path)


LEGACY = {
    "law": "codebook", "path": "classes", "inject_at": 0, "dim": 1, "codebook_size": 3, "init_scale": 0.02, "window": 0,
    "tie": "chain", "weights": "context", "relations": 1, "sweeps": 2, "trunk": "frozen",
}  # fmt: skip


@pytest.mark.parametrize(
    "latent, mixture",
    [
        (None, NoMixture()),
        (LEGACY, ClassChainSettings(codebook_size=3, freeze_backbone=True)),
        ({**LEGACY, "law": "uniform", "path": "token", "trunk": "train"}, PUBLISHED),
    ],
)
def test_a_folder_of_format_1_still_loads(tmp_path, latent, mixture):
    """Its config said `latent` where ours says `mixture`, and had no backbone."""
    network = tiny(mixture)
    own.save(tmp_path, network, length=6)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["mixture"], config["backbone"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": 1, "latent": latent}))
    assert read_checkpoint(tmp_path).mixture == mixture
    assert_same_tensors(load_checkpoint(tmp_path).tensors(), network.tensors())


def test_tensors_of_format_1_are_read_by_their_names_of_then(tmp_path):
    sizes = {"shape": (4, 4, 1), "num_states": 5}
    student = CodesSettings(codebook_size=3).fresh(UNet, UnetConfig(width=4, multipliers=(1,), res_blocks=1), sizes)
    own.save(tmp_path, student)
    config, path = json.loads((tmp_path / "config.json").read_text()), tmp_path / "model.safetensors"
    del config["mixture"], config["backbone"]
    latent = {**LEGACY, "path": "head", "trunk": "train"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": 1, "latent": latent}))
    tensors = load_file(path)
    save_file(
        {name.replace("latent_output.output_head", "latent_output.readout"): t for name, t in tensors.items()}, path
    )
    assert "latent_output.readout.bias" in load_file(path)
    assert_same_tensors(load_checkpoint(tmp_path, "pixels").tensors(), student.tensors())


def exported(tmp_path: Path, **options: str) -> tuple[Any, Any]:
    """A teacher in `teacher/`, and a student of it with a frozen backbone in `student/`."""
    teacher = tiny()
    own.save(tmp_path / "teacher", teacher, length=6)
    student = ClassChainSettings(codebook_size=3).over(teacher, torch.Generator().manual_seed(0)).eval()
    own.save(tmp_path / "student", student, length=6, **options)
    return teacher, student


def test_an_exported_head_is_small_and_loads_with_its_teacher(tmp_path):
    teacher, student = exported(tmp_path, backbone="../teacher")
    of_lambda = set(student.tensors()) - set(teacher.tensors())
    assert set(own.read(tmp_path / "student").tensors) == of_lambda
    (tmp_path / "moved").mkdir()
    for name in ("teacher", "student"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    loaded = load_checkpoint(tmp_path / "moved" / "student")
    assert_same_tensors(loaded.tensors(), student.tensors())
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


def test_a_merged_export_stands_alone(tmp_path):
    _, student = exported(tmp_path)
    (tmp_path / "teacher" / "model.safetensors").unlink()
    assert_same_tensors(load_checkpoint(tmp_path / "student").tensors(), student.tensors())
    trained = tiny(PUBLISHED)
    own.save(tmp_path / "trained", trained, length=6, backbone="../teacher")
    assert_same_tensors(load_checkpoint(tmp_path / "trained").tensors(), trained.tensors())


def test_a_head_on_another_network_is_refused(tmp_path):
    exported(tmp_path, backbone="../teacher")
    own.save(tmp_path / "teacher", tiny(seed=1), length=6)
    with pytest.raises(ValueError, match="trained on the network with fingerprint .* that of ../teacher has") as caught:
        load_checkpoint(tmp_path / "student")
    assert str(tmp_path / "student") in str(caught.value)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="../teacher: expected a file, a folder or a hub name"):
        load_checkpoint(tmp_path / "student")

"""Our own format: bit by bit there and back, whole or not at all."""

import json
import os
from pathlib import Path

import pytest
import torch

from di4c_lm.checkpoints import di4c
from di4c_lm.checkpoints.di4c import load_denoiser, save_denoiser
from tests.checkpoints.tiny import LATENTS, PUBLISHED_LATENT, assert_same_tensors, tiny_dit


@pytest.mark.parametrize("latent", LATENTS)
def test_there_and_back_is_bitwise(tmp_path, latent):
    network = tiny_dit(latent)
    save_denoiser(tmp_path / "a", network, length=6, extra={"tokenizer": "abc"})
    loaded = load_denoiser(tmp_path / "a")
    assert_same_tensors(loaded.network.state_dict(), network.state_dict())
    assert (loaded.length, loaded.extra) == (6, {"tokenizer": "abc"})
    assert (loaded.network.config, loaded.network.latent) == (network.config, latent)
    assert not loaded.network.training
    assert all(parameter.requires_grad for parameter in loaded.network.parameters())


@pytest.mark.parametrize("latent", [None, PUBLISHED_LATENT])
def test_loaded_network_gives_the_same_numbers(tmp_path, latent):
    network = tiny_dit(latent)
    save_denoiser(tmp_path, network, length=6)
    x_t = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.3, 0.9])
    lam = None if latent is None else torch.tensor([[[0.1], [0.7]], [[0.2], [0.4]]])
    with torch.no_grad():
        expected = network(x_t, t, lam).log_probs()
        assert torch.equal(load_denoiser(tmp_path).network(x_t, t, lam).log_probs(), expected)


def test_gathered_state_is_what_is_saved_even_where_the_network_is_sharded(tmp_path):
    """Under ZeRO-3 the network's own parameters are empty; the gathered ones may be views of one flat tensor."""
    network, other = tiny_dit(), tiny_dit(seed=1)
    flat = torch.cat([parameter.detach().flatten() for parameter in other.parameters()])
    sizes = [parameter.numel() for parameter in other.parameters()]
    pieces = zip(other.named_parameters(), flat.split(sizes), strict=True)
    state = {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}
    for parameter in network.parameters():
        parameter.data = torch.empty(0)
    save_denoiser(tmp_path, network, length=6, state=state)
    assert_same_tensors(load_denoiser(tmp_path).network.state_dict(), other.state_dict())


def test_a_state_that_does_not_fit_writes_nothing(tmp_path):
    state = tiny_dit().state_dict()
    del state["blocks.0.norm1.weight"]
    state["blocks.9.norm1.weight"] = torch.ones(16)
    state["blocks.1.norm2.weight"] = torch.ones(17)
    with pytest.raises(ValueError) as caught:
        save_denoiser(tmp_path / "a", tiny_dit(), length=6, state=state)
    message = str(caught.value)
    assert "missing: blocks.0.norm1.weight 16" in message
    assert "unknown: blocks.9.norm1.weight 16" in message
    assert "misshapen: blocks.1.norm2.weight is 17, expected 16" in message
    assert not (tmp_path / "a").exists()


def test_half_precision_is_kept_in_the_file_and_widened_in_the_network(tmp_path):
    network = tiny_dit().bfloat16()
    save_denoiser(tmp_path, network, length=6)
    assert_same_tensors(di4c.read(tmp_path).tensors, network.state_dict())
    assert_same_tensors(load_denoiser(tmp_path).network.state_dict(), network.float().state_dict())


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save_denoiser(tmp_path, tiny_dit(), length=6)
    before = torch.get_rng_state()
    load_denoiser(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    save_denoiser(tmp_path, tiny_dit(), length=6)

    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_denoiser(tmp_path, tiny_dit(seed=1), length=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_tensors(load_denoiser(tmp_path).network.state_dict(), tiny_dit().state_dict())


def test_saving_again_replaces_the_two_files_and_no_other(tmp_path):
    save_denoiser(tmp_path, tiny_dit(), length=6)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_denoiser(tmp_path, tiny_dit(PUBLISHED_LATENT, seed=1), length=8)
    assert (tmp_path / "tokenizer.json").exists()
    loaded = load_denoiser(tmp_path)
    assert loaded.length == 8
    assert loaded.network.latent == PUBLISHED_LATENT


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        save_denoiser(tmp_path, tiny_dit(), length=6)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "key, value, complaint",
    [
        ("length", 0, "length=0 is impossible"),
        ("num_states", "11", "num_states='11' is impossible"),
        ("format_version", 2, "format_version=1, found 2"),
        ("architecture", "GPT2", "'GPT2'"),
        ("more", 1, r"unknown keys \['more'\]"),
        ("model", {"hidden_size": 16, "depth": 3}, "depth"),
        ("model", [1], "settings of the network"),
        ("latent", {"inject_at": 7}, "inject_at=7"),
        ("num_states", 12, "vocab_embed.embedding is 11x16, expected 12x16"),
    ],
)
def test_bad_config_is_refused_by_name(tmp_path, key, value, complaint):
    save_denoiser(tmp_path, tiny_dit(), length=6)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match=complaint) as caught:
        load_denoiser(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    save_denoiser(tmp_path, tiny_dit(), length=6)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated") as caught:
        load_denoiser(tmp_path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json: expected a JSON file, found nothing"):
        load_denoiser(tmp_path / "nowhere")
    save_denoiser(tmp_path, tiny_dit(), length=6)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors: expected a safetensors file, found nothing"):
        load_denoiser(tmp_path)

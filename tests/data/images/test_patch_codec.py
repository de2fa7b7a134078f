"""Codes of patches: there and back, saved and loaded, what is refused, and how well the digits come back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.data.images.builtin import digits
from di4c_lm.data.images.patch_codec import PatchCodec, PatchCodecConfig, is_patch_codec


def planes(count: int = 20, shape: tuple[int, int, int] = (3, 4, 6), values: int = 9) -> torch.Tensor:
    return torch.randint(values, (count, *shape), generator=torch.Generator().manual_seed(0)) / (values - 1) * 2 - 1


def digit_planes() -> torch.Tensor:
    found = digits()
    return torch.from_numpy(found.images).movedim(3, 1).float() * (2 / (found.levels - 1)) - 1


def test_patches_that_are_means_come_back_exactly_each_in_its_place() -> None:
    images = planes(2)
    codec = PatchCodec.fit(images, PatchCodecConfig(num_codes=12))
    assert (codec.length, codec.num_codes) == (6, 12)
    codes = codec.encode(images)
    assert codes.shape == (2, 6) and len(codes.unique()) == 12  # as many means as different patches
    torch.testing.assert_close(codec.decode(codes), images)
    turned = codec.decode(codes.view(2, 2, 3).flip(2).flatten(1))
    torch.testing.assert_close(turned[..., :2], images[..., 4:])  # code d is the d-th patch, row by row


def test_each_patch_has_its_nearest_mean() -> None:
    images = planes(5)
    codec = PatchCodec.fit(images, PatchCodecConfig(num_codes=7))
    errors = (codec.decode(codec.encode(images)) - images).square().sum()
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = torch.from_numpy(rng.integers(7, size=(5, 6)))
        assert (codec.decode(other) - images).square().sum() >= errors


@pytest.mark.parametrize("num_codes, most", [(2, 0.34), (64, 0.022)])
def test_the_digits_come_back_as_well_as_measured(num_codes: int, most: float) -> None:
    """Held-out images, means of the others: squared error of pixels in [-1, 1], 0.0215 at the default's 64 codes."""
    images = digit_planes()
    codec = PatchCodec.fit(images[180:], PatchCodecConfig(num_codes=num_codes))
    assert float((codec.decode(codec.encode(images[:180])) - images[:180]).square().mean()) < most


def test_a_seed_gives_the_same_means() -> None:
    first, again, other = (
        PatchCodec.fit(planes(), PatchCodecConfig(num_codes=5, seed=seed)).state_dict()["means_KE"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_saved_codec_is_the_same(tmp_path: Path) -> None:
    codec = PatchCodec.fit(planes(), PatchCodecConfig(num_codes=5))
    codec.save(tmp_path)
    loaded = PatchCodec.load(tmp_path)
    assert is_patch_codec(tmp_path) and not is_patch_codec(tmp_path.parent)
    assert torch.equal(loaded.encode(planes()), codec.encode(planes()))
    assert (loaded.shape, loaded.patch) == (codec.shape, codec.patch)


def damage(folder: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if kind == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    elif kind == "not finite":
        codec = PatchCodec.load(folder)
        codec.state_dict()["means_KE"][0, 0] = float("nan")
        codec.save(folder)
    elif kind == "another size":
        (folder / "config.json").write_text(json.dumps({**config, "patch": 1}))
    else:
        (folder / "config.json").write_text(json.dumps({**config, "format_version": 9}))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", "a damaged patch codec"),
        ("not finite", "means_KE is not finite"),
        ("another size", "means must hold 3 numbers each, got 12"),
        ("another format", "expected 'di4c_lm.PatchCodec', format 1, found .* format 9"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, kind: str, message: str) -> None:
    PatchCodec.fit(planes(), PatchCodecConfig(num_codes=5)).save(tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        PatchCodec.load(tmp_path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="codec.patch must divide the images' 4 x 6 pixels, got 4"):
        PatchCodec.fit(planes(), PatchCodecConfig(num_codes=5, patch=4))
    with pytest.raises(ValueError, match="codec.num_codes must be at most 12, the images' different patches, got 13"):
        PatchCodec.fit(planes(2), PatchCodecConfig(num_codes=13))
    codec = PatchCodec.fit(planes(), PatchCodecConfig(num_codes=5))
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, 4, 6\), got \(1, 3, 6, 4\)"):
        codec.encode(torch.zeros(1, 3, 6, 4))
    with pytest.raises(ValueError, match="codes: expected 0 to 4, got 0 to 5"):
        codec.decode(torch.tensor([[0, 1, 2, 3, 4, 5]]))
    with pytest.raises(ValueError, match="codes: expected 6 an image, got 3"):
        codec.decode(torch.zeros(1, 3, dtype=torch.int64))

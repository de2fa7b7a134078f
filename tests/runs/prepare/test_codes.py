"""The encoding tool on real files: class folders and tars, cut and in parts, bad input refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.checkpoints.vqgan import save_vqgan
from di4c_lm.data.images.codes import load_codes
from di4c_lm.domains.codes.domain import encode_images, fingerprint
from di4c_lm.networks.vqgan import VqGan, VqganConfig
from di4c_lm.runs.prepare import codes as tool
from tests.data.images.pictures import pixels, png, write_tar

SHAPE = (4, 4, 3)


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory: pytest.TempPathFactory) -> tuple[VqGan, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VqGan(
            VqganConfig(
                n_embed=6, embed_dim=4, z_channels=4, resolution=4, ch=8, ch_mult=(1, 1), num_res_blocks=1,
                attn_resolutions=(), norm_groups=4,
            )
        ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("vqgan")
    save_vqgan(folder, network)
    return network, folder


def folder(root: Path, count: int = 5) -> Path:
    for n in range(count):
        (root / f"class_{n % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"class_{n % 2}" / f"{n}.png").write_bytes(png(pixels(n, SHAPE)))
    return root


def test_folders_and_tars(tmp_path: Path, vqgan: tuple[VqGan, Path], capsys: pytest.CaptureFixture[str]) -> None:
    network, weights = vqgan
    members = [
        (f"{n}.{kind}", part) for n in range(5) for kind, part in (("png", png(pixels(n, SHAPE))), ("cls", b"1"))
    ]
    tar = write_tar(tmp_path / "a.tar", members)
    expected = encode_images(network, np.stack([pixels(n, SHAPE) for n in range(5)]))
    assert tool.main([f"source={tar}", f"out={tmp_path / 'out'}", f"vqgan={weights}", "classes=2"]) == 0
    assert "5 rows of 4 codes in 1 shards, 0 skipped" in capsys.readouterr().out
    found = load_codes(tmp_path / "out")
    assert np.array_equal(found.states(), expected) and found.labels().tolist() == [1] * 5
    assert found.index.coder == fingerprint(network)
    for part in ("1/2", "2/2"):
        place = [f"source={folder(tmp_path / 'in')}", f"out={tmp_path / 'parts'}", f"vqgan={weights}"]
        assert tool.main([*place, f"part={part}"]) == 0
    rows = load_codes(tmp_path / "parts")
    assert sorted(map(tuple, rows.states())) == sorted(map(tuple, expected))
    assert sorted(rows.labels().tolist()) == [0, 0, 0, 1, 1] and rows.index.classes == ("class_0", "class_1")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("part=3/2", "part must be p/n with 1 <= p <= n, got '3/2'"),
        ("shard_images=0", "shard_images must be at least 1, got 0"),
        ("vqgan=/nowhere", "/nowhere: expected a file of torch.save, found nothing"),
        ("out=", "out must be given, got ''"),
    ],
)
def test_bad_input_ends_with_status_2(
    tmp_path: Path, vqgan: tuple[VqGan, Path], capsys: pytest.CaptureFixture[str], wrong: str, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main([f"source={folder(tmp_path / 'in')}", f"out={tmp_path / 'out'}", f"vqgan={vqgan[1]}", wrong])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_image_of_another_size_is_named_or_cut(
    tmp_path: Path, vqgan: tuple[VqGan, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "in")
    (source / "class_0" / "big.png").write_bytes(png(pixels(9, (6, 5, 3))))
    place = [f"source={source}", f"vqgan={vqgan[1]}"]
    with pytest.raises(SystemExit):
        tool.main([*place, f"out={tmp_path / 'out'}"])
    assert "big.png: expected 4 x 4 pixels, found 6 x 5" in capsys.readouterr().err
    assert tool.main([*place, f"out={tmp_path / 'cut'}", "crop=true"]) == 0
    assert len(load_codes(tmp_path / "cut")) == 6

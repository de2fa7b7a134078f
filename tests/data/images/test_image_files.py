"""Folders and tars of images, whole and damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from di4c_lm.data.images.image_files import Fit, ImageReader, decode, folder_images, tar_images
from tests.data.images.pictures import pixels, png, write_folder, write_tar

LABELS = [0, 1, 1, 0, 2]


def test_a_folder_gives_its_images_with_classes_by_name(tmp_path: Path) -> None:
    found = ImageReader(folder_images(write_folder(tmp_path, LABELS)), Fit()).collect()
    order = sorted(range(len(LABELS)), key=lambda n: (LABELS[n], n))
    assert found.classes == ("class_0", "class_1", "class_2")
    assert np.array_equal(found.images, np.stack([pixels(n) for n in order]))
    assert found.labels.tolist() == sorted(LABELS) and found.skipped == 0


@pytest.mark.parametrize("mode, name", [("w", "a.tar"), ("w:gz", "a.tar.gz")])
@pytest.mark.parametrize("form", ["cls", "json"])
def test_a_tar_gives_its_samples(form: str, mode: str, name: str, tmp_path: Path) -> None:
    members = []
    for n, label in enumerate(LABELS):
        told = str(label) if form == "cls" else json.dumps({"label": label})
        members += [(f"part.1/{n:03}.{form}", told.encode()), (f"part.1/{n:03}.png", png(pixels(n)))]
    tar = write_tar(tmp_path / name, members, mode)
    found = ImageReader(tar_images(tar), Fit()).collect()
    assert np.array_equal(found.images, np.stack([pixels(n) for n in range(5)]))
    assert found.labels.tolist() == LABELS and found.classes == ("0", "1", "2")


def test_tars_of_a_folder_come_in_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        members = [(f"{shard}.cls", b"0"), (f"{shard}.png", png(pixels(shard)))]
        write_tar(tmp_path / f"shard_{shard}.tar", members)
    reader = ImageReader(tar_images(tmp_path, classes=("only",)), Fit())
    assert [int(record.image[0, 0, 0]) for record in reader] == [int(pixels(n)[0, 0, 0]) for n in (0, 1)]
    assert reader.collect().classes == ("only",)


def spoil(root: Path, kind: str) -> Path:
    """A folder of images, the third of which cannot be used; its path."""
    write_folder(root, [0] * 4)
    file = root / "class_0" / "002.png"
    content = {
        "cut off": png(pixels(2))[:60],
        "no image": b"text",
        "empty": b"",
        "larger": png(pixels(2, (7, 5, 3))),
        "grey": png(pixels(2, (6, 5))),
        "with alpha": png(pixels(2, (6, 5, 4))),
    }
    file.write_bytes(content[kind])
    return file


BAD = {
    "cut off": "damaged",
    "no image": "damaged image or none",
    "empty": "damaged",
    "larger": "expected 6 x 5 pixels, found 7 x 5",
    "grey": "mode RGB, found L",
    "with alpha": "mode RGB, found RGBA",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named(kind: str, tmp_path: Path) -> None:
    file = spoil(tmp_path, kind)
    with pytest.raises(ValueError, match=BAD[kind]) as error:
        ImageReader(folder_images(tmp_path), Fit()).collect()
    assert str(file) in str(error.value) and "skip_bad=true" in str(error.value)


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_skipped_and_counted(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(tmp_path, kind)
    found = ImageReader(folder_images(tmp_path), Fit(), skip_bad=True).collect()
    assert len(found) == 3 and found.skipped == 1 and "1 images that could not be used" in caplog.text


@pytest.mark.parametrize(
    "members, told",
    [
        ([("a.cls", b"0")], "expected an image .* found .*.cls"),
        ([("a.png", png(pixels(0)))], "expected a label in .cls or .json"),
        ([("a.png", png(pixels(0))), ("a.cls", b"dog")], "expected a label .*ValueError"),
        ([("a.png", png(pixels(0))), ("a.cls", b"2")], "expected a label 0 to 1, found 2"),
        ([("a.png", png(pixels(0))), ("a.cls", b"-1")], "expected a label 0 to 1, found -1"),
        ([("a.png", png(pixels(0))), ("a.json", b'{"name": 3}')], "expected a label .*KeyError"),
    ],
)
def test_bad_samples_of_a_tar_are_named(members: list[tuple[str, bytes]], told: str, tmp_path: Path) -> None:
    good = [("b.png", png(pixels(1))), ("b.cls", b"1")]
    tar = write_tar(tmp_path / "x.tar", [*members, *good])
    raw = tar_images(tar, classes=("no", "yes"))
    with pytest.raises(ValueError, match=f"x.tar:a: {told}"):
        ImageReader(raw, Fit()).collect()
    skipping = ImageReader(raw, Fit(), skip_bad=True).collect()
    assert skipping.labels.tolist() == [1] and skipping.skipped == 1


def test_a_cut_tar_is_named_and_what_came_before_is_kept(tmp_path: Path) -> None:
    members = [part for n in range(6) for part in ((f"{n}.png", png(pixels(n))), (f"{n}.cls", b"0"))]
    tar = write_tar(tmp_path / "x.tar", members)
    tar.write_bytes(tar.read_bytes()[: 512 * 9 + 100])
    with pytest.raises(ValueError, match="x.tar: damaged after"):
        ImageReader(tar_images(tar), Fit()).collect()
    found = ImageReader(tar_images(tar), Fit(), skip_bad=True).collect()
    assert 1 <= len(found) < 6 and found.skipped == 1


@pytest.mark.parametrize("kind, told", [("none", "found no folder"), ("empty class", "none in .*'b'"), ("tars", "tar")])
def test_empty_folders_are_named(kind: str, told: str, tmp_path: Path) -> None:
    if kind == "empty class":
        write_folder(tmp_path, [0])
        (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=told):
        (tar_images if kind == "tars" else folder_images)(tmp_path)


def test_nothing_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found none that can be used \(1 skipped\)"):
        ImageReader(folder_images(tmp_path), Fit(), skip_bad=True).collect()


def test_cropping_takes_the_middle_and_any_mode() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(png(wide), Fit(size=(10, 10), crop=True)) == 200).all()
    assert decode(png(pixels(0, (9, 9, 4))), Fit(size=(4, 6), crop=True)).shape == (4, 6, 3)
    assert decode(png(pixels(0, (9, 9))), Fit(size=(4, 6), crop=True)).shape == (4, 6, 3)
    assert decode(png(pixels(0)), Fit(size=(4, 4), channels=1, crop=True)).shape == (4, 4, 1)


def test_an_image_of_the_asked_size_is_not_changed_by_cropping() -> None:
    assert np.array_equal(decode(png(pixels(0)), Fit(size=(6, 5), crop=True)), pixels(0))


def test_a_jpeg_is_read() -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(buffer, format="JPEG")
    assert np.abs(decode(buffer.getvalue(), Fit(size=(16, 16))).astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    "wish, told", [({"channels": 2}, "channels=2"), ({"size": (0, 3)}, "size"), ({"crop": True}, "size=None")]
)
def test_impossible_fits(wish: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Fit(**wish)

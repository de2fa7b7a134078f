"""Folders and tars of images, whole and damaged."""

import io
import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from di4c_lm.data.images.sources import (
    Fit,
    collect,
    decode,
    decoded,
    folder_images,
    hub_images,
    load_npz,
    load_split,
    raw_images,
    tar_images,
)
from tests.data.images.pictures import pixels, png, write_folder, write_tar

LABELS = [0, 1, 1, 0, 2]


def test_a_folder_gives_its_images_with_classes_by_name(tmp_path: Path) -> None:
    found = collect(folder_images(write_folder(tmp_path, LABELS)), Fit())
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
    found = collect(tar_images(tar), Fit())
    assert np.array_equal(found.images, np.stack([pixels(n) for n in range(5)]))
    assert found.labels.tolist() == LABELS and found.classes == ("0", "1", "2")


def test_tars_of_a_folder_come_in_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        members = [(f"{shard}.cls", b"0"), (f"{shard}.png", png(pixels(shard)))]
        write_tar(tmp_path / f"shard_{shard}.tar", members)
    raw = tar_images(tmp_path, classes=("only",))
    assert [int(entry[0][0, 0, 0]) for entry in decoded(raw, Fit()) if entry] == [
        int(pixels(n)[0, 0, 0]) for n in (0, 1)
    ]
    assert collect(raw, Fit()).classes == ("only",)


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
        collect(folder_images(tmp_path), Fit())
    assert str(file) in str(error.value) and "skip_bad=true" in str(error.value)


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_skipped_and_counted(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(tmp_path, kind)
    found = collect(folder_images(tmp_path), Fit(), skip_bad=True)
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
        collect(raw, Fit())
    skipping = collect(raw, Fit(), skip_bad=True)
    assert skipping.labels.tolist() == [1] and skipping.skipped == 1


def test_a_cut_tar_is_named_and_what_came_before_is_kept(tmp_path: Path) -> None:
    members = [part for n in range(6) for part in ((f"{n}.png", png(pixels(n))), (f"{n}.cls", b"0"))]
    tar = write_tar(tmp_path / "x.tar", members)
    tar.write_bytes(tar.read_bytes()[: 512 * 9 + 100])
    with pytest.raises(ValueError, match="x.tar: damaged after"):
        collect(tar_images(tar), Fit())
    found = collect(tar_images(tar), Fit(), skip_bad=True)
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
        collect(folder_images(tmp_path), Fit(), skip_bad=True)


def test_cropping_takes_the_middle_and_any_mode() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(png(wide), Fit(size=(10, 10), crop=True)) == 200).all()
    assert decode(png(pixels(0, (9, 9, 4))), Fit(size=(4, 6), crop=True)).shape == (4, 6, 3)
    assert decode(png(pixels(0, (9, 9))), Fit(size=(4, 6), crop=True)).shape == (4, 6, 3)
    assert decode(png(pixels(0)), Fit(size=(4, 4), channels=1, crop=True)).shape == (4, 4, 1)


def test_an_image_of_the_asked_size_is_not_changed_by_cropping() -> None:
    assert np.array_equal(decode(png(pixels(0)), Fit(size=(6, 5), crop=True)), pixels(0))


def test_a_photograph_is_turned_as_its_camera_was_held() -> None:
    """EXIF says 6: what is stored is 4 x 6 and is shown as 6 x 4."""
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[:, :3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG", exif=exif)
    found = decode(buffer.getvalue(), Fit(size=(6, 4)))
    assert found.shape == (6, 4, 3) and (found[:3] == 255).all() and (found[3:] == 0).all()
    with pytest.raises(ValueError, match="expected 4 x 6 pixels, found 6 x 4"):
        decode(buffer.getvalue(), Fit(size=(4, 6)))


def test_what_systems_leave_beside_images_is_passed_over_and_other_files_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, [0, 1])
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "class_0" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "class_0" / "a.gif").write_bytes(b"GIF89a")
    assert len(collect(folder_images(tmp_path), Fit())) == 2
    assert "left out, by suffix: 1 .gif" in caplog.text


def test_a_jpeg_is_read() -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(buffer, format="JPEG")
    assert np.abs(decode(buffer.getvalue(), Fit(size=(16, 16))).astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    "wish, told",
    [
        ({"channels": 2}, "channels must be 1 .* or 3 .*, got 2"),
        ({"size": (0, 3)}, "size"),
        ({"crop": True}, "size must be .H, W. where images are cropped, got None"),
    ],
)
def test_impossible_fits(wish: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Fit(**wish)


def write_npz(path: Path, **changed: object) -> Path:
    arrays = {"images": np.stack([pixels(n) for n in range(8)]), "labels": np.arange(8, dtype=np.uint8) % 4, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # pyright: ignore[reportArgumentType]
    return path


@pytest.mark.parametrize("source, count, shape", [("digits", 1797, (8, 8, 1)), ("patches", 3000, (32, 32, 3))])
def test_built_in_sources(source: str, count: int, shape: tuple[int, int, int]) -> None:
    train, validation = load_split(source, seed=1)
    assert len(train) + len(validation) == count and train.shape == validation.shape == shape


def test_an_npz_is_split_by_seed(tmp_path: Path) -> None:
    source = str(write_npz(tmp_path / "x.npz"))
    train, validation = load_split(source, seed=1, validation_share=0.25)
    assert len(train) == 6 and len(validation) == 2 and train.classes == ("0", "1", "2", "3")
    assert validation.fingerprint == load_split(source, seed=1, validation_share=0.25).validation.fingerprint


def test_grey_images_and_class_names_of_an_npz(tmp_path: Path) -> None:
    names = np.array(["a", "b", "c", "d"])
    found = load_npz(write_npz(tmp_path / "x.npz", images=np.zeros((8, 6, 5), np.uint8), classes=names))
    assert found.shape == (6, 5, 1) and found.classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"images": None}, "found no images"),
        ({"labels": None}, "found no labels"),
        ({"images": np.zeros((8, 6, 5, 3), np.float32)}, "uint8 .* found float32"),
        ({"images": np.zeros((8, 3, 6, 5), np.uint8)}, r"1 or 3 channels, found uint8 \(8, 3, 6, 5\)"),
        ({"labels": np.zeros(7, np.int64)}, "expected 8 whole numbers"),
        ({"labels": np.zeros(8)}, "found float64"),
        ({"labels": np.full(8, -2)}, "has label -2"),
        ({"labels": np.full(8, 3), "classes": np.array(["a", "b"])}, "labels 0 to 1, found 8 outside"),
        ({"labels": np.array([{}] * 8, dtype=object)}, "damaged .npz file or none"),
    ],
)
def test_a_bad_npz_is_named(changed: dict, told: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", **changed)
    with pytest.raises(ValueError, match=f"x.npz.*{told}"):
        load_npz(path)


def test_a_damaged_and_an_absent_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="x.npz: a damaged"):
        load_npz(path)
    with pytest.raises(ValueError, match="y.npz: there is no such file"):
        load_npz(tmp_path / "y.npz")


def test_an_npz_of_another_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected images of \(32, 32\) pixels, found \(6, 5\)"):
        load_npz(write_npz(tmp_path / "x.npz"), Fit(size=(32, 32)))


def test_a_folder_of_classes_is_split_or_brings_its_held_out_part(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", [0, 1] * 5)
    train, validation = load_split(str(tmp_path / "one"), seed=0, validation_share=0.2)
    assert (len(train), len(validation)) == (8, 2)
    write_folder(tmp_path / "two" / "train", [0, 1] * 5)
    write_folder(tmp_path / "two" / "val", [0, 1])
    train, validation = load_split(str(tmp_path / "two"), seed=0)
    assert (len(train), len(validation)) == (10, 2) and validation.classes == train.classes


def test_a_held_out_part_of_other_classes_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", [0, 1])
    write_folder(tmp_path / "test", [1, 2])
    with pytest.raises(ValueError, match="expected the classes and the size of .*train"):
        load_split(str(tmp_path), seed=0)


def test_tars_are_a_source(tmp_path: Path) -> None:
    members = [part for n in range(6) for part in ((f"{n}.png", png(pixels(n))), (f"{n}.cls", str(n % 2).encode()))]
    tar = write_tar(tmp_path / "a.tar", members)
    for source in (tmp_path, tar):
        assert sum(map(len, load_split(str(source), seed=0, validation_share=0.5))) == 6


@pytest.mark.parametrize("source, told", [("/absent/place", "found nothing"), ("./notes.txt", "another kind of file")])
def test_what_is_no_source_is_named(source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        raw_images(source)


def test_levels_are_for_the_digits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="levels must be 256 for .*, got 16"):
        load_split(str(write_npz(tmp_path / "x.npz")), seed=0, levels=16)
    assert load_split("digits", seed=0, levels=16).train.levels == 16


def rows(**columns: object) -> datasets.Dataset:
    found: dict = {
        "img": [{"bytes": png(pixels(n)), "path": None} for n in range(4)],
        "label": [0, 1, 0, 1],
        **columns,
    }
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    return datasets.Dataset.from_dict(found, features)


def test_a_hub_data_set_brings_its_class_names_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "test"])
    train, validation = load_split("cifar10", seed=0)
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]
    assert train.classes == validation.classes == ("cat", "dog")
    assert np.array_equal(train.images, np.stack([pixels(n) for n in range(4)])) and train.labels.tolist() == [0, 1] * 2


def test_a_damaged_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = rows(img=[{"bytes": b"?" if n == 2 else png(pixels(n)), "path": None} for n in range(4)])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: damaged)
    with pytest.raises(ValueError, match="some/set, train, row 2: a damaged image"):
        collect(hub_images("some/set", "train"), Fit())


def test_other_columns_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = datasets.Dataset.from_dict({"text": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: text)
    with pytest.raises(ValueError, match=r"found \['text'\]"):
        hub_images("some/set", "train")


def test_an_unknown_split_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ValueError("Unknown split 'trains'")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="some/set, split trains: cannot be loaded: Unknown split"):
        hub_images("some/set", "trains")


def test_real_cifar_images(shared: Path) -> None:
    train, validation = load_split(str(shared / "data" / "cifar10" / "train_first4000.npz"), seed=0)
    assert (len(train), len(validation)) == (3600, 400) and train.shape == (32, 32, 3) and len(train.classes) == 10


def test_only_the_decoders_of_the_suffixes_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under another name would make Pillow start Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="a damaged image or none: it is none of PNG, JPEG"):
        decode(script, Fit())


def test_pixels_of_another_size_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(pixels(0, (40, 30, 3)))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="expected 8 x 8 pixels, found 40 x 30"):
        decode(content, Fit(size=(8, 8)))


def test_a_label_makes_no_classes_without_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("0.cls", b"1000000000"), ("0.png", png(pixels(0)))])
    with pytest.raises(ValueError, match="expected a label 0 to 65535, found 1000000000"):
        collect(tar_images(tar), Fit())
    images = np.zeros((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([10_000_000]))
    with pytest.raises(ValueError, match="expected labels below 65536, found 10000000"):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("count, told", [(10**9, "Unable to allocate"), (10, "EOF: reading array data, expected")])
def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path, count: int, told: str) -> None:
    header = io.BytesIO()
    shape = (count, 64, 64, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=f"a damaged .npz file or none: .*{told}"):
        load_npz(tmp_path / "a.npz")

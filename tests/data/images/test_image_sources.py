"""Sources of images by name."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from di4c_lm.data.images.image_files import Fit, ImageReader
from di4c_lm.data.images.image_sources import hub_images, load_npz, load_split, raw_images
from tests.data.images.pictures import pixels, png, write_folder, write_tar


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
    Path("notes.txt").write_text("x")
    with pytest.raises(ValueError, match=told):
        raw_images(source)


def test_levels_are_for_the_digits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="levels=16"):
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
        ImageReader(hub_images("some/set", "train"), Fit()).collect()


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

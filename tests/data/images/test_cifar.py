"""CIFAR-10's own files, whole and damaged."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from di4c_lm.data.images.cifar import CLASSES, is_cifar_folder, load_cifar_folder

NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def content(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.integers(256, size=(4, 3072)).astype(np.uint8), rng.integers(10, size=4).astype(np.uint8)


def write(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        data, labels = content(number)
        if version == "bin":
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], data], 1).tobytes())
        else:
            told = {b"data": data, b"labels": labels.tolist(), b"batch_label": name.encode()}
            (folder / name).write_bytes(pickle.dumps(told, protocol=2))
    return folder


@pytest.mark.parametrize("version", ["bin", "py"])
def test_both_versions_are_read(version: str, tmp_path: Path) -> None:
    write(tmp_path / f"cifar-10-batches-{version}", version)
    assert is_cifar_folder(tmp_path)
    train, test = load_cifar_folder(tmp_path)
    assert len(train) == 20 and len(test) == 4 and train.classes == CLASSES and train.shape == (32, 32, 3)
    assert np.array_equal(train.states()[4:8], content(1)[0]) and np.array_equal(test.labels, content(5)[1])


def test_the_red_plane_comes_first(tmp_path: Path) -> None:
    train, _ = load_cifar_folder(write(tmp_path / "x", "bin"))
    assert train.images[0, 2, 7, 1] == content(0)[0][0, 1024 + 2 * 32 + 7]


@pytest.mark.parametrize("version", ["bin", "py"])
def test_a_cut_file_is_named(version: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", version)
    file = folder / ("data_batch_3.bin" if version == "bin" else "data_batch_3")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="data_batch_3"):
        load_cifar_folder(folder)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "py")
    (folder / "data_batch_4").unlink()
    with pytest.raises(ValueError, match="found no data_batch_4"):
        load_cifar_folder(folder)


def test_a_folder_without_them_is_named(tmp_path: Path) -> None:
    assert not is_cifar_folder(tmp_path)
    with pytest.raises(ValueError, match="data_batch_1"):
        load_cifar_folder(tmp_path)


class _Code:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "x", "py")
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": _Code(), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match="data_batch_1.*no part of a file of images"):
        load_cifar_folder(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "told, message",
    [
        ({b"data": np.zeros((2, 10), np.uint8), b"labels": [0, 1]}, "found uint8"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1, 2]}, "expected 3 images"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "KeyError"),
        ([1, 2], "TypeError"),
    ],
)
def test_other_content_is_named(told: object, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "py")
    (folder / "data_batch_2").write_bytes(pickle.dumps(told, protocol=2))
    with pytest.raises(ValueError, match=f"data_batch_2.*{message}"):
        load_cifar_folder(folder)


def test_labels_beyond_the_classes_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "bin")
    file = folder / "test_batch.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match="test: expected labels 0 to 9, found 1 outside: image 0 has label 10"):
        load_cifar_folder(folder)

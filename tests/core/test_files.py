import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.core.files import (
    MANIFEST,
    LockedError,
    damage,
    entry_of,
    lock,
    read_json,
    read_manifest,
    remove_left_overs,
    save_tensors,
    settle,
    whole_file,
    write_bytes,
    write_json,
    write_manifest,
    write_text,
)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_written_is_read_back(tmp_path: Path):
    write_text(tmp_path / "a" / "text.txt", "λ\n")
    write_json(tmp_path / "a" / "value.json", {"x": [1, "é"]})
    write_bytes(tmp_path / "a" / "bytes", b"\x00\r\n")
    assert (tmp_path / "a" / "text.txt").read_bytes() == "λ\n".encode()
    assert read_json(tmp_path / "a" / "value.json") == {"x": [1, "é"]}
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\x00\r\n"
    assert len(list((tmp_path / "a").iterdir())) == 3  # nothing is left beside them


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "file.npz"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as beside:
        assert beside.suffix == ".npz"
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from di4c_lm.core.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as beside: beside.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    write_text(tmp_path / "kept", "old")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    remove_left_overs(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_json_without_a_number_for_nan(tmp_path: Path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_files_have_the_modes_that_the_umask_leaves_whoever_wrote_them(tmp_path: Path, umask: None):
    write_text(tmp_path / "text", "a")
    with whole_file(tmp_path / "tensors") as beside:
        save_tensors(beside, {"a": torch.ones(2)})
    (tmp_path / "folder").mkdir()
    os.close(os.open(tmp_path / "folder" / "narrow", os.O_CREAT | os.O_WRONLY, 0o600))
    settle(tmp_path / "folder")
    assert mode(tmp_path / "text") == mode(tmp_path / "tensors") == mode(tmp_path / "folder" / "narrow") == 0o640
    assert mode(tmp_path / "folder") == 0o750


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "t", {"whole": whole, "part": whole[2:4]})
    torch.testing.assert_close(load_file(tmp_path / "t"), {"whole": whole, "part": whole[2:4]})


def test_tensors_on_a_full_disk_are_an_oserror_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import safetensors.torch
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match=r"weights.*No space left"):
        save_tensors(tmp_path / "weights", {})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_an_error_that_names_the_file(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match="x.json: expected a JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="absent.json: expected a JSON file, found nothing"):
        read_json(tmp_path / "absent.json")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "inside" / "large").write_bytes(bytes(1 << 21))
    write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_a_sealed_folder_is_whole_and_holds_its_facts(sealed: Path):
    assert damage(sealed) is None
    assert read_manifest(sealed) == {
        "step": 3,
        "files": {name: entry_of(sealed / name) for name in ("small", "inside/large")},
    }


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda folder: (folder / "small").unlink(), "small is missing"),
        (lambda folder: (folder / "small").write_bytes(b"ab"), "small has 2 bytes, expected 3"),
        (lambda folder: (folder / "small").write_bytes(b"abd"), "small has another checksum"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing or damaged"),
        (lambda folder: (folder / MANIFEST).write_bytes(b""), "manifest.json is missing or damaged"),
        (lambda folder: write_json(folder / MANIFEST, {**read_manifest(folder), "sha256": "0"}), "does not fit"),
    ],
)
def test_damage_is_named(sealed: Path, harm, message: str):
    harm(sealed)
    assert message in str(damage(sealed))


def test_each_share_of_the_files_is_compared_by_one(sealed: Path):
    (sealed / "small").write_bytes(b"abd")
    assert [damage(sealed, share=(part, 2)) is None for part in range(2)] == [True, False]


def test_large_files_are_read_once_small_ones_always(sealed: Path):
    verified: set[object] = set()
    assert damage(sealed, verified=verified) is None
    large = sealed / "inside" / "large"
    stamp = large.stat()
    large.write_bytes(b"\1" + bytes((1 << 21) - 1))
    os.utime(large, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert damage(sealed, verified=verified) is None  # unchanged, as far as one can tell without reading it
    os.utime(large)
    assert "inside/large has another checksum" in str(damage(sealed, verified=verified))
    (sealed / "small").write_bytes(b"abd")
    assert "small" in str(damage(sealed, share=(1, 2), verified=verified))


def test_a_lock_shuts_out_others_and_names_its_holder(tmp_path: Path):
    told = rf"process {os.getpid()} on .* is training A; training B has to wait"
    with lock(tmp_path / "x.lock", "training A"), pytest.raises(LockedError, match=told):
        lock(tmp_path / "x.lock", "training B", wait_s=0).__enter__()
    assert not list(tmp_path.iterdir())
    with lock(tmp_path / "x.lock", "training B", wait_s=0):
        pass


def test_one_at_a_time_however_many_want_the_lock(tmp_path: Path):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock(tmp_path / "x.lock", "counting"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_killed_process_frees_its_lock(tmp_path: Path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from di4c_lm.core.files import lock\n"
        "with lock(Path(sys.argv[1]), 'sleeping'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        assert json.loads(path.read_text())["pid"] == child.pid
        child.kill()
    with lock(path, "going on", wait_s=5):
        pass

"""Files and folders that are whole or absent: written beside, synced, renamed; locks; checksums and manifests.

Files that are made here have the modes that the umask asks for, so that users can share a folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_BESIDE = ".tmp-"  # how the names of folders begin that hold what is being written
_BLOCK = 1 << 22  # bytes read at once
_SMALL = 1 << 20  # bytes of a file whose checksum is compared each time
_POLL_S = 0.2


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, of the suffix of `path`: it becomes `path` by one rename at the end of the block.

    An error in the block, a kill or a full disk leave the old file as it was. The folder is made where it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f"{_BESIDE}{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder / f"whole{path.suffix}"
        settle(folder)
        os.replace(folder / f"whole{path.suffix}", path)
    except OSError as error:  # of a file that nobody has asked for
        nameless = error.errno is not None and error.filename is None  # of a write
        if not nameless and folder.name not in str(error):
            raise
        reason = error.strerror or str(error).rpartition(f"{folder.name}/whole{path.suffix}: ")[2]
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sync(path.parent)


def remove_left_overs(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`. The caller holds a lock, so that nobody is writing there now."""
    for path in folder.glob(f"{_BESIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def settle(folder: Path) -> None:
    """Everything in `folder` on the disk, with the modes of a folder and its files that nobody narrowed."""
    readable = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | readable)
        sync(path)
    sync(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path`, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `path` as JSON, whole or not at all. Raises `ValueError` for a number that JSON cannot hold (infinite, NaN)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write tensors to `path` in the safetensors format. Raises `OSError` that names it, also for a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: _own_storage(tensor) for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the Rust side wraps the system's error in one of its own
        raise OSError(f"{path}: could not be written: {error}") from error


def _own_storage(tensor: "Tensor") -> "Tensor":
    tensor = tensor.detach().cpu().contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a JSON file, found nothing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON file, could not read it: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def check_writable(folder: Path, key: str) -> None:
    """Raise `ValueError` that names `key` where `folder` cannot be written, or made. Nothing is written."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{key}: {folder} cannot be a folder: {there} is a file; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{key}: {folder} cannot be written: {there} may not be changed; choose another place")


# Checksums and manifests


def checksum(path: Path, new: Callable[[], Any] = hashlib.sha256) -> str:
    """The hash of a file's content, as hex digits; SHA-256 unless `new` makes another of `hashlib`."""
    digest = new()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def entry_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size and its checksum."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def write_manifest(folder: Path, facts: Mapping[str, Any], files: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Close `folder`: from here on it can be found whole. `files` holds `entry_of` by name; by default, of all files in it."""
    if files is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): entry_of(path) for path in paths if path != folder / MANIFEST}
    manifest = {**facts, "files": dict(files)}
    write_json(folder / MANIFEST, {**manifest, "sha256": _seal(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises `ValueError` where it is absent or damaged."""
    manifest = read_json(folder / MANIFEST)
    if manifest.pop("sha256", None) != _seal(manifest):
        raise ValueError(f"{folder / MANIFEST}: its checksum does not fit")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, *, share: tuple[int, int] = (0, 1), verified: set[Any] | None = None) -> str | None:
    """Why `folder` is not as its manifest says, or None where it is.

    Args:
        folder: as `write_manifest` closed it.
        share: (r, n) compares every n-th file from the r-th on.
        verified: remembers large files whose checksum was right; these are read again only if their size or time of change differs.

    Raises `OSError` where it may not be read.
    """
    try:
        files = sorted(read_manifest(folder)["files"].items())
    except (ValueError, KeyError) as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        return f"{MANIFEST} is missing or damaged: {error}"
    for name, entry in files[share[0] :: share[1]]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat()
        if found.st_size != entry["bytes"]:
            return f"{name} has {found.st_size} bytes, expected {entry['bytes']}"
        stamp = (str(path.absolute()), found.st_ino, found.st_mtime_ns, entry["sha256"])
        if verified is not None and found.st_size > _SMALL and stamp in verified:
            continue
        if checksum(path) != entry["sha256"]:
            return f"{name} has another checksum than when it was written"
        if verified is not None:
            verified.add(stamp)
    return None


# Locks


class LockedError(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, purpose: str, *, wait_s: float | int = math.inf) -> Iterator[None]:
    """Hold the lock file `path` for the block; no other process, on any machine that shares the folder, is in such a block meanwhile.

    Args:
        path: made for the block and removed after it. A process that is killed frees the lock, whatever is left of the file.
        purpose: what the lock is held for, such as "training the teacher X"; told to those who wait.
        wait_s: how long to wait for another holder.

    Raises `LockedError`, which names the holder and its purpose, when `wait_s` is over, and `OSError` where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start, told = time.monotonic(), False
    while (handle := _acquired(path)) is None:
        holder = _holder(path)
        waited_s = time.monotonic() - start
        if waited_s >= wait_s:
            raise LockedError(f"{holder}; {purpose} has to wait for it")
        if not told and waited_s >= _POLL_S:
            logger.info("%s; waiting for it before %s", holder, purpose)
            told = True
        time.sleep(_POLL_S)
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose}
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(who).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquired(path: Path) -> int | None:
    """The open lock file, locked, or None where another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before removed the file: then this one is no longer the lock.
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        logger.warning(
            "%s: this file system has no locks (%s): take care that no second process is at work there", path, error
        )
        return handle
    os.close(handle)
    return None


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_bytes())
        return f"process {who['pid']} on {who['host']} is {who['purpose']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process holds {path}"

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.core.cache import WORK, Cache, key_of
from di4c_lm.core.files import MANIFEST
from tests.core import make_entry

SCRIPT = str(Path(make_entry.__file__))


class Maker:
    def __init__(self, content: str = "content"):
        self.calls, self.content = 0, content

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "whole").write_text(self.content)


def start(*arguments: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=pipe, stderr=pipe, text=True)


def test_an_entry_is_made_once(tmp_path: Path):
    make = Maker()
    paths = {Cache(tmp_path).entry("things", "key", make) for _ in range(3)}
    assert make.calls == 1 and paths == {tmp_path / "things" / "key"}
    assert (tmp_path / "things" / "key" / "whole").read_text() == "content"
    assert [path.name for path in (tmp_path / "things").iterdir()] == ["key"]  # nothing is left beside it


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: (entry / "whole").write_text("c0ntent"),
        lambda entry: (entry / "whole").write_text(""),
        lambda entry: (entry / "whole").unlink(),
        lambda entry: (entry / MANIFEST).unlink(),
    ],
)
def test_a_damaged_entry_is_named_removed_and_made_again(
    tmp_path: Path, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture
):
    make = Maker()
    entry = Cache(tmp_path).entry("things", "key", make)
    harm(entry)
    (entry / "stray").touch()
    assert Cache(tmp_path).entry("things", "key", make) == entry and make.calls == 2
    assert f"{entry}: damaged" in caplog.text and (entry / "whole").read_text() == "content"
    assert not (entry / "stray").exists()


def test_a_file_in_the_place_of_an_entry_is_replaced(tmp_path: Path):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "key").write_text("of an older version")
    assert (Cache(tmp_path).entry("things", "key", Maker()) / "whole").is_file()


def test_a_killed_making_leaves_no_entry_and_resumes_from_its_work(tmp_path: Path):
    killed = start(str(tmp_path), "1")
    assert killed.communicate()[0].split("\n")[:2] == ["step 0", "step 1"]
    assert not (tmp_path / "things" / "key").exists() and (tmp_path / "things" / "key.making" / WORK / "1").exists()
    said = start(str(tmp_path)).communicate()[0]
    assert said == f"step 2\n{tmp_path / 'things' / 'key'}\n"
    assert sorted(path.name for path in (tmp_path / "things" / "key").iterdir()) == [MANIFEST, "whole"]


def test_a_second_process_waits_and_uses_what_the_first_made(tmp_path: Path):
    first, second = start(str(tmp_path)), start(str(tmp_path))
    said = [process.communicate() for process in (first, second)]
    made = ["step" in out for out, _ in said]
    assert sorted(made) == [False, True] and all(out.endswith(f"{tmp_path / 'things' / 'key'}\n") for out, _ in said)
    assert f"is making {tmp_path / 'things' / 'key'}; waiting" in said[made.index(False)][1]


def test_an_error_of_the_maker_passes_and_its_work_stays(tmp_path: Path):
    def fail(folder: Path) -> None:
        (folder / WORK).mkdir()
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Cache(tmp_path).entry("things", "key", fail)
    entry = Cache(tmp_path).entry("things", "key", Maker())
    assert sorted(path.name for path in entry.iterdir()) == [MANIFEST, "whole"]


def test_a_cache_that_cannot_be_used_is_an_error_of_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"file/things/key cannot be read or written: Not a directory: .*run.cache_dir"
    ) as error:
        Cache(tmp_path / "file").entry("things", "key", Maker())
    assert "\n" not in str(error.value)


def test_an_entry_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = Maker()
    entry = Cache(tmp_path).entry("things", "key", make)
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == entry / MANIFEST:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(ValueError, match="things/key cannot be read or written: Permission denied"):
        Cache(tmp_path).entry("things", "key", make)
    assert entry.is_dir() and make.calls == 1


class Threads:
    """Ranks of a run as threads: two machines of two."""

    def __init__(self, size: int = 4):
        self.gathered = 0
        self.size, self._barrier, self._items = size, threading.Barrier(size), [None] * size

    def run(self, work: Callable[["ThreadRank"], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            try:
                results[rank] = work(ThreadRank(self, rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results

    def gather(self, rank: int, item: Any) -> list[Any]:
        self._items[rank] = item
        self._barrier.wait(20)
        found = list(self._items)
        self.gathered += rank == 0
        self._barrier.wait(20)
        return found


class ThreadRank:
    def __init__(self, threads: Threads, rank: int):
        self._threads, self.rank, self.local_rank = threads, rank, rank % 2

    def gather(self, item: Any) -> list[Any]:
        return self._threads.gather(self.rank, item)


def test_of_several_ranks_one_makes_and_all_find_the_entry(tmp_path: Path):
    make = Maker()
    paths = Threads().run(lambda ranks: Cache(tmp_path, ranks).entry("things", "key", make))
    assert paths == [tmp_path / "things" / "key"] * 4 and make.calls == 1


def test_each_machine_with_a_disk_of_its_own_makes_the_entry(tmp_path: Path):
    make = Maker()
    paths = Threads().run(lambda ranks: Cache(tmp_path / str(ranks.rank // 2), ranks).entry("things", "key", make))
    assert [path.is_dir() for path in paths] == [True] * 4 and make.calls == 2


def test_what_is_made_together_is_made_by_all_ranks_in_one_folder(tmp_path: Path):
    folders: list[Path] = []

    def work(ranks: ThreadRank) -> Path:
        def make(folder: Path) -> None:
            folders.append(folder)
            ranks.gather(None)
            if ranks.rank == 0:
                (folder / "whole").touch()

        return Cache(tmp_path, ranks).entry("things", "key", make, together=True)

    threads = Threads()
    assert (
        threads.run(work) == [tmp_path / "things" / "key"] * 4 and folders == [tmp_path / "things" / "key.making"] * 4
    )
    assert threads.run(work) == [tmp_path / "things" / "key"] * 4 and len(folders) == 4


def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path):
    def fail(folder: Path) -> None:
        raise ValueError("the corpus is empty")

    errors = Threads().run(lambda ranks: Cache(tmp_path, ranks).entry("things", "key", fail))
    assert all(isinstance(error, ValueError) and "the corpus is empty" in str(error) for error in errors)


@pytest.mark.parametrize("together", [False, True])
def test_ranks_that_wait_for_another_run_give_signs_of_life(tmp_path: Path, *, together: bool):
    other, make, rounds = start(str(tmp_path)), Maker(), Threads()
    assert other.stdout is not None and other.stdout.readline() == "step 0\n"

    def work(ranks: ThreadRank) -> Path:
        return Cache(tmp_path, ranks, round_s=0.1).entry("things", "key", make, together=together)

    paths = rounds.run(work)
    other.communicate()
    assert paths == [tmp_path / "things" / "key"] * 4 and make.calls == 0
    assert rounds.gathered > 2


def test_keys_stand_for_values():
    assert key_of(1, {"a": 2, "b": 3}) == key_of(1, {"b": 3, "a": 2}) != key_of(1, {"a": 2, "b": 4})
    assert len(key_of("x")) == 16

"""Work done ahead: the next items are made in a thread while the one before is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_CHECK_S = 0.1


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """`items` in their order, up to `depth` + 1 of them made ahead; an error in making one is raised in its place.

    Of use where making an item releases the interpreter's lock, as `tokenizers`, compression and reading do. Closing the
    iterator ends the thread after the item it is at.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put((kind, value), timeout=_CHECK_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()

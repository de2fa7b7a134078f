"""Watches that every rank goes on, and ends the run with the name of one that does not: collectives alone wait, or fail without a name.

Each rank says a few times a timeout, on a thread of its own, that it lives and how far its work is. The store of the run carries it, so
that it works over gloo and NCCL alike. Rank 0 judges all ranks; the others judge rank 0, and take its verdict.
"""

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist

from di4c_lm.training.distributed import barrier, gather_objects, rank, world_size

logger = logging.getLogger(__name__)
EXIT_STATUS = 75  # EX_TEMPFAIL: started again, the run goes on from its checkpoint
_VERDICT = "verdict"
_SHORTEST = 1.0  # seconds between two signs, at most


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank says: `pulse` counts its signs, `beats` the moves of its work, the last of them to `place`.

    `broken`: a collective has failed; `failed`: the work ended by the error in `place`; `left`: it ended well.
    """

    pulse: int = 0
    beats: int = 0
    place: str = "the start"
    status: Literal["working", "broken", "failed", "left"] = "working"


class Jury:
    """Which ranks have stopped, by their signs. `now` is any clock in seconds; `timeout` and `grace`, the patience after an error, too."""

    def __init__(self, *, timeout: int | float, grace: int | float) -> None:
        self._timeout, self._grace = timeout, grace
        self._signs: dict[int, Sign] = {}
        self._pulse_at: dict[int, float] = {}
        self._beat_at: dict[int, float] = {}

    def hear(self, signs: Mapping[int, Sign], now: int | float) -> None:
        """Take in what each rank said last."""
        for number, sign in signs.items():
            before = self._signs.get(number)
            if before is None or sign.pulse != before.pulse:
                self._pulse_at[number] = now
            if before is None or sign.beats != before.beats:
                self._beat_at[number] = now
            self._signs[number] = sign

    def silent(self, now: int | float, *, broken: bool) -> dict[int, str]:
        """Ranks that are dead or stopped, whose pulse stands still, and how they were last; less time is needed if a collective broke."""
        broken = broken or any(sign.status == "broken" for sign in self._signs.values())
        found: dict[int, str] = {}
        for number, sign in self._signs.items():
            seconds = now - self._pulse_at[number]
            if sign.status == "failed" and seconds > self._grace:
                found[number] = f"failed: {sign.place}"
            elif sign.status in ("working", "broken") and seconds > (self._grace if broken else self._timeout):
                found[number] = f"has given no sign of life for {seconds:.1f} s; it was at {sign.place}"
        return found

    def behind(self, now: int | float) -> dict[int, str]:
        """Once nobody's work has moved for the timeout: the ranks that are furthest behind, for whom the others wait."""
        working = {number: sign for number, sign in self._signs.items() if sign.status == "working"}
        if not working or any(now - self._beat_at[number] <= self._timeout for number in working):
            return {}
        least = min(sign.beats for sign in working.values())
        return {
            number: f"has not moved for {now - self._beat_at[number]:.1f} s; it is at {sign.place}"
            for number, sign in working.items()
            if sign.beats == least
        }


class Watch:
    """A context manager around the work of all ranks, which says by `beat` that it goes on; `timeout` in seconds, 0 for no watch.

    If a rank dies or stops, the others log its name, host and process within about `timeout` and leave with `EXIT_STATUS`, from a thread:
    the work itself may hang in a collective. After a collective's error they look for a missing rank, and let the error pass if there is
    none. Time for which this process was stopped itself does not count.
    """

    _runs = 0  # the same on all ranks: the keys of one watch must not be taken for another's

    def __init__(self, timeout: int | float) -> None:
        self._timeout = timeout
        self._period = min(_SHORTEST, timeout / 10)
        self._grace = 4 * self._period
        self._rank, self._names = rank(), [""]
        self._own = Sign()
        self._heard: dict[int, Sign] = {}
        self._verdict = ""
        self._leave = threading.Event()
        self._talker = threading.Thread(target=self._talk, name="watch-talk", daemon=True)

    def __enter__(self) -> "Watch":
        if self._timeout:
            self._names = gather_objects(f"rank {rank()} (host {socket.gethostname()}, process {os.getpid()})")
            Watch._runs += 1
            self._store = _connect(f"watch/{Watch._runs}", self._timeout)
            self._say(0)
            if self._rank == 0:
                self._store.set(_VERDICT, "")
            barrier()  # from here on every key is there
            self._talker.start()
            threading.Thread(target=self._judge, name="watch-judge", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if not self._timeout:
            return
        if world_size() > 1 and (type(error) is RuntimeError or isinstance(error, dist.DistError)):
            self._own = dataclasses.replace(self._own, status="broken")
            time.sleep(3 * self._grace)  # the judge ends the process meanwhile, if a rank is missing
        failed = isinstance(error, Exception)
        place = f"{type(error).__name__}: {error}" if failed else self._own.place
        self._own = dataclasses.replace(self._own, status="failed" if failed else "left", place=place)
        self._leave.set()
        self._talker.join(self._grace)
        if failed and self._rank == 0:
            time.sleep(2 * self._period)  # the others hear of it before the store goes

    def beat(self, place: str) -> None:
        """This rank's work goes on, and is now at `place`."""
        self._own = Sign(beats=self._own.beats + 1, place=place)

    def _say(self, pulse: int) -> None:
        self._store.set(str(self._rank), json.dumps(dataclasses.asdict(dataclasses.replace(self._own, pulse=pulse))))

    def _talk(self) -> None:
        """Say that this rank lives, and hear how the others are. A store that does not answer holds up this thread alone."""
        ranks = list(range(len(self._names))) if self._rank == 0 else [0]
        pulse, leaving = 0, False
        try:
            while not leaving:
                leaving = self._leave.wait(self._period)
                pulse += 1
                self._say(pulse)
                *said, verdict = self._store.multi_get([*map(str, ranks), _VERDICT])
                self._heard = {number: Sign(**json.loads(one)) for number, one in zip(ranks, said, strict=True)}
                self._verdict = verdict.decode()
        except RuntimeError as error:  # its rank ended: the judge sees that its pulse stands still
            logger.debug("rank %d has lost the store of the run: %s", self._rank, error)

    def _judge(self) -> None:
        jury = Jury(timeout=self._timeout, grace=self._grace)
        jury.hear(dict.fromkeys(range(len(self._names)) if self._rank == 0 else [0], Sign()), 0.0)
        clock, last = 0.0, time.monotonic()
        while not self._leave.wait(self._period):
            now = time.monotonic()
            clock, last = clock + min(now - last, 2 * self._period), now
            jury.hear(self._heard, clock)
            accused = jury.silent(clock, broken=self._own.status == "broken")
            if not accused and self._rank == 0:
                accused = jury.behind(clock)
            verdict = self._verdict or "; ".join(f"{self._names[number]} {how}" for number, how in accused.items())
            if verdict:
                self._end(verdict)

    def _end(self, verdict: str) -> None:
        logger.error("rank %d ends the run: %s", self._rank, verdict)
        if self._rank == 0:
            threading.Thread(target=self._store.set, args=(_VERDICT, verdict), daemon=True).start()
            time.sleep(3 * self._period)  # the others read it before the store goes
        os._exit(EXIT_STATUS)


def _connect(prefix: str, timeout: int | float) -> Any:
    """A connection of our own to the store of the run, since calls over one connection wait for each other."""
    if world_size() == 1:
        return dist.PrefixStore(prefix, dist.HashStore())  # pyright: ignore[reportPrivateImportUsage]
    host, port, wait = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=max(10.0, timeout))
    store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # pyright: ignore[reportPrivateImportUsage]
    return dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]

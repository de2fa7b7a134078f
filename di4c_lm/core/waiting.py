"""How the threads of PyTorch wait for each other, which has to be said before it is loaded."""

import os

_SAID_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_BUSY = 0.5  # cores, on average over the last minute


def wait_by_load() -> None:
    """Let OpenMP's threads sleep while they wait where other processes keep the machine busy, unless the environment says how they wait.

    By default they spin, in which a thread whose neighbour has lost its core burns its own: beside one busy process two threads do less
    than one. Where nothing else runs, spinning is the faster way.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load >= _BUSY and not any(name in os.environ for name in _SAID_BY):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

"""Retries of what needs a network: what is worth another try, and what to say when trying is over."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Between attempts. The hub's own client and `datasets` try each request several times within one attempt.
DELAYS_S = (2.0, 8.0)
# By name, as these classes live in httpx, requests, aiohttp, huggingface_hub or Python itself, by version.
_NETWORK_ERRORS = frozenset(
    {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "ClientError", "gaierror", "SSLError"}
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_network_failure(error: BaseException) -> bool:
    """Whether a server did not answer, or answered that it cannot now (429, 5xx), anywhere in the chain of causes."""
    for cause in _causes(error):
        if any(kind.__name__ in _NETWORK_ERRORS for kind in type(cause).__mro__):
            return True
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and (status == 429 or status >= 500):
            return True
    return False


def look_for_hub() -> None:
    """Before the hub is asked: where its name cannot be resolved, this process asks only its cache from here on, and a warning says so.

    The hub's own clients would try for minutes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(host.hostname, host.port or 443)
    except OSError:
        logger.warning("%s cannot be found from here: only what is cached of the hub is used", constants.ENDPOINT)
        constants.HF_HUB_OFFLINE = True


def is_local(source: str) -> bool:
    """Whether a name that may be one of the hub's, `owner/name`, can only be meant as a path: by its form, or by the folder it is in."""
    path = Path(source).expanduser()
    return (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or path.exists()
        or ("/" in source and path.parent.is_dir())
    )


def foreign_reason(error: BaseException) -> str:
    """What a library says is wrong, without its advice to run the code that comes with a model."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return "it comes with code of its own, which is never run here: take one that transformers knows by itself"
    return text


def _is_offline_by_choice() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


class RetryPolicy:
    """Counts failures in a row. `what` is being tried; `offline_way` is what the user can do without a network."""

    def __init__(self, what: str, offline_way: str) -> None:
        self.what = what
        self.offline_way = offline_way
        self.failures = 0

    def after(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            ConnectionError: the attempts are used up, or HF_HUB_OFFLINE is set; it names the offline way.
            Exception: `error` itself, where it is not the network's.
        """
        if not is_network_failure(error):
            raise error
        if _is_offline_by_choice() or self.failures >= len(DELAYS_S):
            attempts = self.failures + 1
            raise ConnectionError(
                f"{self.what}: no answer after {attempts} attempts ({error}). Offline: {self.offline_way}"
            ) from error
        delay = DELAYS_S[self.failures]
        self.failures += 1
        logger.warning("%s: %s; trying again in %g s", self.what, error, delay)
        time.sleep(delay)

    def succeeded(self) -> None:
        """Forget the failures: the network answers again."""
        self.failures = 0


def with_retries(action: Callable[[], Result], what: str, offline_way: str) -> Result:
    """`action()`, tried again with back-off where the network fails. Raises as `RetryPolicy.after`."""
    policy = RetryPolicy(what, offline_way)
    while True:
        try:
            return action()
        except Exception as error:
            policy.after(error)

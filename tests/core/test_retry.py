"""Retries where a network fails."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from di4c_lm.core import retry as hub
from di4c_lm.core.retry import RetryPolicy, is_network_failure, with_retries


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.response = Answer(status_code)


class TransportError(Exception):
    """By the name that httpx uses."""


class ReadTimeout(TransportError):
    pass


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses taken, in seconds, without taking them."""
    taken: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", taken.append)
    monkeypatch.setattr(hub, "DELAYS_S", (1.0, 4.0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return taken


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def action() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return action


def wrapped(error: Exception) -> Exception:
    outer = OSError("cannot load")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error, network",
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ReadTimeout(), True),
        (wrapped(ReadTimeout()), True),
        (StatusError(503), True),
        (StatusError(429), True),
        (StatusError(404), False),
        (FileNotFoundError(), False),
        (ValueError("bad"), False),
    ],
)
def test_which_failures_are_the_networks(error: Exception, network: bool) -> None:  # noqa: FBT001
    assert is_network_failure(error) is network


@pytest.mark.parametrize("times", [0, 1, 2])
def test_passing_failures_are_waited_out(times: int, waits: list[float]) -> None:
    assert with_retries(failing(times, ConnectionResetError("reset")), "it", "another way") == "done"
    assert waits == [1.0, 4.0][:times]


def test_lasting_failures_name_the_offline_way(waits: list[float]) -> None:
    with pytest.raises(ConnectionError, match="it: no answer after 3 attempts.*reset.*Offline: another way"):
        with_retries(failing(3, ConnectionResetError("reset")), "it", "another way")
    assert waits == [1.0, 4.0]


def test_other_errors_are_not_tried_again(waits: list[float]) -> None:
    with pytest.raises(KeyError, match="absent"):
        with_retries(failing(1, KeyError("absent")), "it", "another way")
    assert waits == []


def test_offline_by_choice_does_not_wait(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="after 1 attempts"):
        with_retries(failing(1, ConnectionError("offline")), "it", "another way")
    assert waits == []


def test_success_restores_patience(waits: list[float]) -> None:
    policy = RetryPolicy("it", "another way")
    for _ in range(5):
        policy.after(ConnectionResetError("reset"))
        policy.succeeded()
    assert waits == [1.0] * 5


def test_a_hub_that_cannot_be_found_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clients of the hub would try for minutes."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.look_for_hub()
    assert not constants.HF_HUB_OFFLINE, "its name is known: whether it answers is another question"
    monkeypatch.setattr(constants, "ENDPOINT", "https://no.such.host.invalid")
    hub.look_for_hub()
    assert constants.HF_HUB_OFFLINE and "only what is cached" in caplog.text


@pytest.mark.parametrize(
    "source, local",
    [
        ("./x", True),
        ("/x/y", True),
        ("~/x", True),
        ("a/b/c", True),
        ("here/x", True),
        ("owner/name", False),
        ("gpt2", False),
    ],
)
def test_what_can_only_be_meant_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, source: str, local: bool
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.is_local(source) == local

"""The demo's server: samples as they appear, the same that a model samples by itself; bad input in one line; this machine alone."""

import base64
import io
import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from anyio import Lock, from_thread
from PIL import Image
from starlette.testclient import TestClient

from di4c_lm.runs.demo import server

SIZES = {"steps": "3", "num_samples": "2"}


def ask(client: TestClient, **request: Any) -> list[dict[str, Any]]:
    """The lines that come back."""
    body = json.dumps(SIZES | request)
    answer = client.post("/sample", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def of(lines: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["model"] == model]


def whole_letters(text: str) -> str:
    """The text, its bytes that make no letter, as a bad model writes them, as one mark each run."""
    return re.sub("\ufffd+", "\ufffd", text)


def picture(line: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(line["picture"])))


def test_the_page_and_all_that_it_takes_come_from_the_server(page, texts) -> None:
    client = page(**texts)
    html = client.get("/").text
    assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
    whole = html + client.get("/page.js").text + client.get("/page.css").text
    assert "http" not in whole.replace("http-equiv", "")
    facts = client.get("/facts").json()
    assert facts["kind"] == "text" and list(facts["models"]) == ["teacher", "student"]
    assert facts["begin"]["sampler"] == "ancestral" and facts["begin"]["steps"] == "8"
    assert (
        "tau_leaping" not in facts["samplers"] and facts["samplers"]["remasking"]["settings"]["eta"]["value"] == "0.02"
    )
    assert "optimised" in facts["grids"]


@pytest.mark.parametrize(
    "more", [{}, {"sampler": "remasking", "sampler.eta": "0.4"}, {"sampler": "blocks", "grid": "cosine"}]
)
def test_texts_appear_step_by_step_as_the_model_samples_them(page, texts, more: dict[str, str]) -> None:
    lines = ask(page(**texts), prompt="the cat", seed="5", temperature="0.8", **more)
    for name, model in texts.items():
        *steps, end = of(lines, name)
        shown: list[dict[int, tuple]] = [{}, {}]
        for number, line in enumerate(steps):
            assert line["step"] == number
            for text, changes in zip(shown, line["changes"], strict=True):
                for position, piece, step, p in changes:
                    completed = (
                        number and text[position][0] and piece is not None
                    )  # another token of the same letter came
                    assert step == (0 if piece is None else text[position][1] if completed else number) and 0 < p <= 1
                    text[position] = piece, step, p
            assert line["masked"] == sum(piece is None for text in shown for piece, _, _ in text.values())
        how = {key.removeprefix("sampler."): value for key, value in more.items()}
        if "eta" in how:
            from di4c_lm.samplers.remasking import Remasking

            how = {"sampler": Remasking(eta=0.4)}
        wanted = model.sample(2, steps=3, prompt="the cat", seed=5, temperature=0.8, **how)
        pieces = ["".join(text[d][0] for d in range(12)) for text in shown]
        assert [whole_letters(text) for text in pieces] == [whole_letters(text) for text in wanted]
        assert all(text[0][1] == 0 and text[11][1] > 0 for text in shown)  # given, and revealed
        assert end["nfe"] > 0 and end["seconds"] > 0


def test_chosen_models_sample_and_the_others_do_not(page, texts) -> None:
    assert {line["model"] for line in ask(page(**texts), models=["student"])} == {"student"}


def test_codes_are_seen_where_they_are_known(page, codes) -> None:
    client = page(student=codes)
    facts = client.get("/facts").json()
    assert facts["models"]["student"]["classes"] == 3 and facts["begin"]["sampler"] == "confidence"
    assert facts["kind"] == "images" and "optimised" not in facts["grids"]
    *steps, end = ask(client, labels="[0,2]", guidance="1.0", seed="3")
    assert [line["step"] for line in steps] == [1, 2, 3] and end["nfe"] == 6 - 1  # the ramp of guidance begins at 0
    for line in steps:
        rgba = np.asarray(picture(line))
        sizes = 4 * 12, 6 * 12  # of each image, of 4: two of each class
        assert rgba.shape == (2 * sizes[0] + 2, 2 * sizes[1] + 2, 4)
        corners = [
            rgba[r + 24 * i + 2, c + 24 * j + 2, 3] for r in (0, 50) for c in (0, 74) for i in (0, 1) for j in (0, 1, 2)
        ]
        assert sum(int(alpha == 0) for alpha in corners) == line["masked"]
    whole = codes.sample(steps=3, seed=3, labels=[0, 0, 2, 2], guidance=1.0)
    assert (np.asarray(picture(steps[-1]))[:48:12, :72:12, 0] == whole[0, :, :, 0]).all()


def test_pixels_are_seen_at_every_level_of_noise(page, pixels) -> None:
    *steps, end = ask(page(student=pixels), seed="1")
    assert end["nfe"] == 3 and all(line["masked"] is None for line in steps)
    whole = pixels.sample(2, steps=3, seed=1)
    assert (np.asarray(picture(steps[-1]))[:48:6, :48:6, 0] == whole[0, :, :, 0]).all()
    assert (np.asarray(picture(steps[0])) != np.asarray(picture(steps[-1]))).any()


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"steps": "0"}, "steps must be at least 1, got 0"),
        ({"steps": "9999"}, "steps must be at most 1000"),
        ({"num_samples": "65"}, "num_samples must be at most 64"),
        ({"temperature": "-1"}, "temperature must be at least 0, got -1.0"),
        ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
        ({"top_p": "1.5"}, "top_p must be in (0, 1]"),
        ({"sampler": "gibbs"}, "sampler must be one of ancestral"),
        ({"sampler": "remasking", "sampler.eta": "7"}, "sampler.eta must be in [0, 1]"),
        ({"depth": "3"}, "there is no key depth"),
        ({"models": ["absent"]}, "models must be some of teacher, student"),
        ({"models": [["x"]]}, "models must be a list"),
        ({"sampler": ["x"]}, "sampler must be text"),
        ({"steps": {"a": "b"}}, "steps must be text"),
        ({"prompt": "x" * 2**17}, "shorten the prompt"),
    ],
)
def test_bad_input_gets_one_line_and_the_server_goes_on(page, texts, request_: dict, message: str) -> None:
    client = page(**texts)
    answer = client.post("/sample", json=SIZES | request_)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error and "\n" not in error
    assert len(ask(client)) == 2 * 5


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"prompt": "the cat " * 20}, "exceeds the sequence of 12"),
        ({"grid": "sine"}, "grid must be one of uniform, cosine, published"),
        ({"grid": "[1,0.5]"}, "grid must be times that descend from 1 to 0"),
        ({"sampler": "tau_leaping"}, "sampler=tau_leaping needs a chain on ordered levels"),
        ({"labels": "[1]"}, "labels must be left out for text"),
        ({"guidance": "2"}, "guidance must be 0 where no condition"),
        ({"hybrid_last": "1"}, "hybrid_last must be 0 where no teacher"),
        ({"prompt": "\ud800"}, "prompt must be"),
    ],
)
def test_what_does_not_fit_a_model_is_said_of_it(page, texts, request_: dict, message: str) -> None:
    client = page(**texts)
    lines = ask(client, **request_)
    errors = [line["error"] for line in lines if "error" in line]
    assert len(errors) == 2
    assert all(message in error and "\n" not in error for error in errors)
    assert len(ask(client)) == 2 * 5


def test_classes_that_there_are_not(page, codes, pixels) -> None:
    assert "error" in ask(page(student=codes), labels="[3]")[0]
    assert "labels must be left out" in ask(page(student=pixels), labels="[0]")[0]["error"]
    assert "prompt must be left out for images" in ask(page(student=codes), prompt="x")[0]["error"]


def test_what_nobody_foresaw_is_one_line_too(page, texts, monkeypatch, caplog) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("secret")

    client = page(**texts)
    with monkeypatch.context() as patch:
        patch.setattr(server, "show", fail)
        lines = ask(client)
    assert [line["error"] for line in lines] == ["the demo failed here, which its terminal tells more of: KeyError"] * 2
    assert "secret" in caplog.text
    assert len(ask(client)) == 2 * 5


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("path", ["/", "/facts", "/page.js"])
def test_another_host_than_this_machine_is_refused(page, texts, host: str, path: str) -> None:
    assert page(**texts).get(path, headers={"Host": host}).status_code == 400


def test_another_sites_form_is_refused(page, texts) -> None:
    client = page(**texts)
    body = json.dumps(SIZES)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post("/sample", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400 and "application/json" in answer.json()["error"]
    for body in ("{", "[]", "[" * 10**4, '"x"', "\xff"):
        answer = client.post("/sample", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"].startswith("a request must be")


def test_requests_wait_for_each_other(page, texts, monkeypatch) -> None:
    """While one samples the other is told to wait, and neither's samples depend on it."""
    show, running, most, calls = server.show, 0, 0, 0
    turn = Lock()
    monkeypatch.setattr(server, "Lock", lambda: turn)

    def counted(*arguments: Any) -> None:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        try:
            while calls == 1 and not from_thread.run_sync(turn.statistics).tasks_waiting:
                time.sleep(0.01)  # until the other request is there
            show(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(server, "show", counted)
    answers: dict[str, list] = {}
    with page(**texts) as client:

        def one(seed: str) -> None:
            answers[seed] = ask(client, seed=seed, steps="12", sampler="first_hitting")

        threads = [threading.Thread(target=one, args=[seed]) for seed in ("1", "2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
        assert sum("waiting" in line for lines in answers.values() for line in lines) == 1
        for seed, lines in answers.items():
            alone = ask(client, seed=seed, steps="12", sampler="first_hitting")
            assert [line.get("changes") for line in lines if "model" in line] == [line.get("changes") for line in alone]

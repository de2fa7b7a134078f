"""The page in a browser: what a user does with mouse and keyboard, and sees."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from di4c_lm.core.compose import compose
from di4c_lm.runs.demo.demo import Settings, facts_of, listening
from di4c_lm.runs.demo.server import app

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="takes Chromium, such as Debian's package of that name"),
]


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Serves the page of models; its address."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(**models: Any) -> str:
        listener = listening(0)
        made = app(models, facts_of(models, compose(Settings, ["prompt=the cat"])))
        server = uvicorn.Server(uvicorn.Config(made, ws="none", lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that fetches from nowhere else, and in which no script fails."""
    opened, wrong = browser.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: wrong.append(asked.url) if "//127.0.0.1:" not in asked.url[:20] else None)
    yield opened
    assert not [one for one in wrong if not one.startswith("data:")]


def see(tab: Any, selector: str) -> Any:
    return playwright.expect(tab.locator(selector))


def visit(tab: Any, address: str) -> None:
    """The page, when it is ready."""
    tab.goto(address)
    see(tab, "#go").to_be_enabled()


def test_tokens_are_seen_to_appear_side_by_side(served, tab, texts) -> None:
    visit(tab, served(**texts))
    see(tab, "#prompt").to_have_value("the cat")
    tab.fill("[name=steps]", "3")
    tab.focus("#prompt")
    tab.keyboard.press("Control+Enter")
    see(tab, "#status").to_contain_text("student: 3 network calls a sample (NFE)")
    tab.select_option("#pace", "100")
    see(tab, "#step-number").to_have_text("3 of 3")
    see(tab, "#play").to_have_text("Play")
    see(tab, "article h2").to_have_text(["teacher", "student"])
    see(tab, "article:nth-child(2) .masked").to_have_count(0)
    given = tab.locator("article:nth-child(2) .given").all_text_contents()
    assert "".join(given) == "the cat"
    for name, number in (("teacher", 1), ("student", 2)):
        written = "".join(tab.locator(f"article:nth-child({number}) .text > span").all_text_contents())
        assert written.partition("\ufffd")[0] in texts[name].sample(steps=3, prompt="the cat")[0]
    tab.focus("#step")
    tab.keyboard.press("Home")
    see(tab, "article:nth-child(1) .masked").to_have_count(12 - len(given))
    tab.keyboard.press("End")
    by_step = tab.locator("article:nth-child(1) .token").first.get_attribute("style")
    tab.check("[name=colour][value=p]")
    assert tab.locator("article:nth-child(1) .token").first.get_attribute("style") != by_step
    see(tab, "#low").to_have_text("p = 0")
    assert "p = " in tab.locator(".token").first.get_attribute("title")


def test_bad_input_is_one_line_on_the_page(served, tab, texts) -> None:
    visit(tab, served(**texts))
    for name, value, message in (
        ("steps", "0", "steps must be at least 1, got 0"),
        ("temperature", "-1", "temperature must be at least 0, got -1.0"),
        ("grid", "sine", "grid must be one of"),
        ("prompt", "the cat " * 20, "exceeds the sequence of 12"),
    ):
        before = tab.input_value(f"[name={name}]")
        tab.fill(f"[name={name}]", value)
        tab.click("#go")
        see(tab, "#error:visible, .error >> nth=0").to_contain_text(message)
        tab.fill(f"[name={name}]", before)
    tab.uncheck("[name=models][value=student]")
    tab.select_option("[name=sampler]", "remasking")
    tab.click("summary")
    tab.fill("[name='sampler.eta']", "0.5")
    tab.click("#go")
    see(tab, "#status").to_contain_text("teacher: ")
    see(tab, "article h2").to_have_text(["teacher"])
    see(tab, "#error").to_be_hidden()


def test_sampling_stops_when_asked_and_when_the_page_is_left(served, tab, texts) -> None:
    from di4c_lm.runs.demo import server

    left = threading.Event()
    show = server.show

    def slow(model: Any, request: Any, emit: Callable[[dict], None]) -> None:
        def later(event: dict) -> None:
            time.sleep(0.3)
            emit(event)

        try:
            show(model, request, later)
        except BaseException:
            left.set()
            raise

    address = served(**texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "show", slow)
        for leave in (lambda: tab.click("#stop"), lambda: tab.goto("about:blank")):
            visit(tab, address)
            tab.fill("[name=steps]", "900")
            tab.click("#go")
            see(tab, "article .facts").to_contain_text(["step", ""])
            leave()
            assert left.wait(10)
            left.clear()
    visit(tab, address)
    tab.click("#go")
    see(tab, "#status").to_contain_text("student: ")


def test_images_are_seen_at_each_step(served, tab, codes) -> None:
    visit(tab, served(student=codes))
    see(tab, "#prompt").to_be_hidden()
    tab.fill("[name=labels]", "0,2")
    tab.fill("[name=steps]", "3")
    tab.click("#go")
    see(tab, "#status").to_contain_text("student: 3 network calls")
    tab.focus("#step")
    tab.keyboard.press("End")
    see(tab, "article .facts").to_contain_text("0 masked")
    last = tab.locator("article img").get_attribute("src")
    tab.keyboard.press("ArrowLeft")
    see(tab, "article img").not_to_have_attribute("src", last)

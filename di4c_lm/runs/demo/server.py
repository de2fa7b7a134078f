"""The page's server: for this machine alone, one request sampling at a time, bad input answered in one line."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyio import Lock, WouldBlock, create_task_group, from_thread, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from di4c_lm.core.compose import compose
from di4c_lm.core.settings import check
from di4c_lm.core.terminal import foreseen
from di4c_lm.runs.demo.shown import Event, Request, show

HOSTS = ("127.0.0.1", "localhost")  # a page from elsewhere whose name is made to lead here says another
_PAGE = Path(__file__).with_name("page")
_MOST_BYTES = 2**16  # of a request
_log = logging.getLogger(__name__)


def app(models: Mapping[str, Any], facts: Mapping[str, Any]) -> Starlette:
    """The page, `facts` about it for its script, and samples of the models, by name, on request."""
    turn = Lock()  # one request samples at a time

    async def sample(http: HttpRequest) -> Response:
        try:
            request = await _read(http)
            unknown = [name for name in request.models if name not in models]
            check(not unknown, "models", request.models, f"some of {', '.join(models)}")
        except Exception as error:
            return JSONResponse({"error": _message(error)}, status_code=400)
        chosen = {name: models[name] for name in request.models or models}
        return _Samples(chosen, request, turn)

    async def tell(_: HttpRequest) -> Response:
        return JSONResponse(facts)

    routes = [
        Route("/facts", tell),
        Route("/sample", sample, methods=["POST"]),
        Mount("/", StaticFiles(directory=_PAGE, html=True)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])


async def _read(http: HttpRequest) -> Request:
    """The request, its values read as those of a command line. Raises `ValueError` for one that is none."""
    kind = http.headers.get("content-type", "").partition(";")[0]
    check(kind == "application/json", "Content-Type", kind, "application/json")  # which another site's page cannot send
    body = b""
    async for part in http.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError(f"a request must be at most {_MOST_BYTES} bytes long: shorten the prompt")
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a request must be JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"a request must be an object of settings, got {type(plain).__name__}")
    for key, value in plain.items():
        names = isinstance(value, list) and key == "models"
        check(isinstance(value, str) or names, key, value, "text, as it would be said on the command line")
    return compose(Request, list(plain.items()))


class _Samples(Response):
    """Samples of one model after another, a line of JSON for each step as it is made; a reader who leaves ends the sampling."""

    def __init__(self, models: Mapping[str, Any], request: Request, turn: Lock) -> None:
        super().__init__(media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._models, self._request, self._turn = models, request, turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def line(event: Event) -> None:
            body = json.dumps(event, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async with create_task_group() as group:

            async def leave() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(leave)
            try:
                self._turn.acquire_nowait()
            except WouldBlock:
                await line({"waiting": True})
                await self._turn.acquire()
            try:
                await to_thread.run_sync(self._run, line)
            finally:
                self._turn.release()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

    def _run(self, line: Any) -> None:
        """In a thread: what is wrong with one model is said of it, and the next has its turn."""
        for name, model in self._models.items():

            def emit(event: Event, name: str = name) -> None:
                from_thread.check_cancelled()
                from_thread.run(line, {"model": name, **event})

            try:
                show(model, self._request, emit)
            except Exception as error:
                emit({"error": _message(error)})


def _message(error: Exception) -> str:
    """In one line what the terminal would say; what nobody foresaw is told there in full."""
    told = foreseen(error)
    if told is None:
        _log.error("the demo goes on after an error", exc_info=error)
    return told or f"the demo failed here, which its terminal tells more of: {type(error).__name__}"

"""A local HTTP server that answers as the Hugging Face hub does, for one model, and fails on demand."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

MDLM, SDTT = "kuleshov-group/mdlm-owt", "jdeschena/sdtt"
REVISION = "baselines_kld_step_70000"
SHA = {"main": "0" * 39 + "1", "baselines_kld_step_70000": "0" * 39 + "2"}


class Hub:
    """The models served, by name, revision and path; the requests seen; and the statuses that the next requests get instead."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.failures: list[int] = []
        self.failing = ""  # only requests with this in them fail
        self.pushed: dict[str, bytes] = {}

    def tree(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Files by path; None for a name or revision that is not there."""
        by_sha = {sha: branch for branch, sha in SHA.items()}
        return self.files.get((name, by_sha.get(revision, revision)))


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, content: object, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def missing(self, code: str) -> None:
            self.answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def fails(self) -> bool:
            hub.requests.append(f"{self.command} {self.path}")
            if not hub.failures or hub.failing not in hub.requests[-1]:
                return False
            self.read()
            self.answer(hub.failures.pop(0), b"out of order")
            return True

        def do_GET(self) -> None:
            if self.fails():
                return
            path = self.path.split("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                name, what, revision = found.groups()
                tree = hub.tree(name, revision)
                if tree is None:
                    known = any(name == other for other, _ in hub.files)
                    self.missing("RevisionNotFound" if known else "RepoNotFound")
                elif what == "revision":
                    siblings = [{"rfilename": file} for file in tree]
                    self.json({"id": name, "modelId": name, "sha": SHA[revision], "siblings": siblings, "tags": []})
                else:
                    oid = {file: hashlib.sha1(content).hexdigest() for file, content in tree.items()}
                    self.json(
                        [{"type": "file", "path": f, "size": len(c), "oid": oid[f]} for f, c in tree.items()],
                    )
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                tree = hub.tree(found[1], found[2])
                if tree is None or found[3] not in tree:
                    self.missing("EntryNotFound")
                else:
                    content = tree[found[3]]
                    etag = f'"{hashlib.sha1(content).hexdigest()}"'
                    sha = SHA.get(found[2], found[2])
                    self.answer(200, content, {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"})
            else:
                self.missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            if self.fails():
                return
            body = self.read()
            if self.headers.get("Authorization") != "Bearer hf_test":
                self.json({"error": "Invalid credentials"}, status=401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                self.json({"url": f"{hub.url}/{asked.get('organization')}/{asked['name']}"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                self.json(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                name = self.path.removeprefix("/api/models/").split("/commit/")[0]
                self.json({"commitUrl": f"{hub.url}/{name}/commit/{SHA['main']}", "commitOid": SHA["main"]})
            else:
                self.json({})

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as the hub holds them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does where it is set before the import."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

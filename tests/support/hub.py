"""A Hugging Face Hub on this machine, with as much of its API as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """The contents of the Hub, and the requests that it received.

    Attributes:
        repos: Files of each repository: Hub id -> file name -> content.
        refused: Hub id -> status and `X-Error-Code` of every answer.
        cut: File name -> number of bytes after which the connection ends, once.
        held: File name -> event to set before the second half of its content is sent.
        requests: "METHOD path" of every request.
        endpoint: Address of the server.
        commit: Commit of the branch `main` of every repository.
    """

    repos: dict[str, dict[str, bytes]]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""
    commit: str = COMMIT

    def downloads(self, name: str) -> int:
        """Return the number of requests for the content of *name*."""
        return sum(line.startswith("GET") and line.endswith(name) for line in self.requests)


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Answer requests for *hub* on a port of this machine until the block ends."""

    class Handler(_Handler):
        world = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def online(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve *hub* until the block ends, as the only Hub that the client reaches."""
    with serve(hub) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def empty_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return *folder*, which the client takes for its cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


class _Handler(BaseHTTPRequestHandler):
    world: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    # Any: the signature of the base class.
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.world.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        if repo in self.world.refused:
            status, code = self.world.refused[repo]
            self._send(status, b"{}", body=body, headers={"X-Error-Code": code})
        elif repo not in self.world.repos:
            # The Hub's answer for repositories that are private or do not exist.
            self._send(401, b"{}", body=body, headers={"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", self.world.commit):
            self._send(404, b"{}", body=body, headers={"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._send_info(repo, rest)
        else:
            self._send_file(repo, "/".join(rest[2:]), body=body)

    def _send_info(self, repo: str, rest: list[str]) -> None:
        files = self.world.repos[repo]
        if rest and rest[0] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in files.items()
            ]
            self._send(200, json.dumps(entries).encode(), body=True)
            return
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": _etag(content)}
            for name, content in files.items()
        ]
        info = {"id": repo, "sha": self.world.commit, "siblings": siblings, "private": False}
        self._send(200, json.dumps(info).encode(), body=True)

    def _send_file(self, repo: str, name: str, *, body: bool) -> None:
        content = self.world.repos[repo].get(name)
        if content is None:
            self._send(404, b"", body=body, headers={"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": self.world.commit, "ETag": f'"{_etag(content)}"'}
        start, status = 0, 200
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], body=body, headers=headers, cut=name)

    def _send(
        self,
        status: int,
        content: bytes,
        *,
        body: bool,
        headers: dict[str, str] | None = None,
        cut: str = "",
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        limit = self.world.cut.pop(cut, None)
        half = len(content) // 2 if cut in self.world.held else 0
        self.wfile.write(content[:half])
        if half:
            self.world.held[cut].wait(timeout=20)
        self.wfile.write(content[half:limit])
        if limit is not None:
            self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()

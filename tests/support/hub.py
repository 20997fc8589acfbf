"""A stub of the Hugging Face Hub on 127.0.0.1 that tests can stop: a node without internet."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Revision:
    """One commit of a dataset repository. files: content, by path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        text = "".join(f"{path} {_oid(content)}\n" for path, content in sorted(files.items()))
        self.sha = hashlib.sha1(text.encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """Describe a file or a directory as the Hub's tree does."""
        commit = {"id": self.sha, "title": "a commit", "date": "2025-01-01T00:00:00.000Z"}
        if path in self.files:
            content = self.files[path]
            return {"type": "file", "oid": _oid(content), "size": len(content), "path": path, "lastCommit": commit}
        return {"type": "directory", "oid": self.sha, "size": 0, "path": path, "lastCommit": commit}

    def tree(self, below: str, recursive: bool) -> list[dict[str, Any]] | None:
        """Return the entries of a directory, or None if it does not exist."""
        start = f"{below}/" if below else ""
        paths = {path[len(start) :] for path in self.files if path.startswith(start)}
        if not paths:
            return None
        folders = {path.rsplit("/", 1)[0] for path in paths if "/" in path}
        shown = paths | folders if recursive else {path.split("/")[0] for path in paths}
        return [self.entry(start + path) for path in sorted(shown)]


class Hub:
    """The server. repositories: the revisions of each dataset, the last one being `main`. asked: the requests so far."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[Revision]] = {}
        self.asked: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a program finds this Hub, and no other."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._port}",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }

    def push(self, name: str, files: dict[str, bytes]) -> str:
        """Add a revision to a dataset; return its commit."""
        self.repositories.setdefault(name, []).append(Revision(files))
        return self.repositories[name][-1].sha

    def start(self) -> None:
        """Listen, always at the same port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), type("Handler", (_Handler,), {"hub": self}))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have no Hub within the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def find(self, name: str, revision: str) -> Revision | None:
        """Return a revision by `main` or its commit."""
        found = self.repositories.get(name, [])
        return next((one for one in reversed(found) if revision in ("main", one.sha)), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            self.answer_api(parts[1:], body)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.answer_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self.refuse("EntryNotFound")

    do_HEAD = do_POST = do_GET

    def answer_api(self, parts: list[str], body: bytes) -> None:
        if parts[0] != "datasets" or len(parts) < 3:
            return self.refuse("RepoNotFound")
        name, what = "/".join(parts[1:3]), parts[3:] or ["revision"]
        if name not in self.hub.repositories:
            return self.refuse("RepoNotFound")
        if what == ["refs"]:
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.hub.repositories[name][-1].sha}
            return self.answer_json({"branches": [head], "tags": [], "converts": []})
        found = self.hub.find(name, what[1] if len(what) > 1 else "main")
        if found is None:
            return self.refuse("RevisionNotFound")
        if what[0] == "tree":
            entries = found.tree("/".join(what[2:]), "recursive=true" in self.path.lower())
            return self.refuse("EntryNotFound") if entries is None else self.answer_json(entries)
        if what[0] == "paths-info":
            return self.answer_json(
                [found.entry(path) for path in _paths(body) if found.tree(path, False) or path in found.files]
            )
        if what[0] == "revision":
            files = [{"rfilename": path, "size": len(content)} for path, content in sorted(found.files.items())]
            facts = {"id": name, "sha": found.sha, "siblings": files, "private": False, "gated": False, "disabled": False}
            dates = dict.fromkeys(("lastModified", "createdAt"), "2025-01-01T00:00:00.000Z")
            return self.answer_json({"_id": found.sha[:24], "tags": [], "downloads": 0, "likes": 0, **facts, **dates})
        return self.refuse("EntryNotFound")

    def answer_file(self, name: str, revision: str, path: str) -> None:
        found = self.hub.find(name, revision)
        if found is None or path not in found.files:
            return self.refuse("RevisionNotFound" if found is None else "EntryNotFound")
        content, status = found.files[path], 200
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            begin, end = int(first or 0), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        return self.answer(status, content, headers)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.answer(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    """Return git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _paths(body: bytes) -> list[str]:
    """Return the paths of a question for paths: JSON, or a form in earlier versions of huggingface_hub."""
    found = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
    return [found] if isinstance(found, str) else list(found)

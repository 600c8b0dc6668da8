"""A fake Hugging Face hub, which creates repositories and accepts commits of small files."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from huggingface_hub import constants


class Hub(HTTPServer):
    """A server on this machine. `asked` holds (path, content) of its requests, `committed` names of files."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuses = refuses
        self.asked: list[tuple[str, Any]] = []
        self.are_private: list[bool] = []
        self.committed: set[str] = set()
        self.tokens: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, path: str, lines: list[Any]) -> dict[str, Any]:
        content = lines[0]
        self.asked.append((path, content))
        if path == "/api/repos/create":
            # The key depends on the version of huggingface_hub.
            self.are_private.append(content.get("visibility") == "private" or content.get("private") is True)
            return {"url": f"{self.url}/someone/{content['name']}"}
        if "preupload" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in content["files"]
            ]
            return {"files": files}
        if "commit" in path:
            self.committed |= {line["value"]["path"] for line in lines if line["key"] == "file"}
            kind = "datasets/" if "/datasets/" in path else ""
            return {"commitUrl": f"{self.url}/{kind}someone/name/commit/{'0' * 40}", "commitOid": "0" * 40}
        return {"errors": [], "warnings": []}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        # A commit is one JSON object a line, the others are one object.
        whole = [content] if "commit" not in self.path else content.splitlines()
        self.server.tokens.add(self.headers["Authorization"])
        answer = self.server.answer(self.path, [json.loads(line) for line in whole])
        self.reply(403 if self.server.refuses else 200, answer)

    def do_GET(self) -> None:
        self.reply(404, {"error": "no"})

    def reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def open_hub(monkeypatch: pytest.MonkeyPatch, *, refuses: bool = False) -> Iterator[Hub]:
    """A hub in place of huggingface.co; with `refuses` it answers every request with status 403."""
    hub = Hub(refuses=refuses)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    try:
        yield hub
    finally:
        hub.close()

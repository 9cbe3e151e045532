"""A hub in this process, on loopback, that speaks as much of the Hugging Face hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_a-token-that-may-write"


@dataclass
class FakeHub:
    """Repositories by ``models/owner/name`` or ``datasets/owner/name``: their visibility and their files."""

    url: str = ""
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Files by their SHA-256 that came by the protocol of Git LFS."""
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def serving_hub() -> Iterator[FakeHub]:
    """A hub for as long as the block lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            if self.command == "PUT":
                hub.large[hashlib.sha256(body).hexdigest()] = body
                self._say(200, {})
                return
            if path == "/api/validate-yaml":
                self._say(200, {"warnings": [], "errors": []})
                return
            hub.tokens.add(self.headers.get("Authorization"))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._say(401, {"error": "Invalid credentials in Authorization header"})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path.endswith("/objects/batch"):
                self._batch(json.loads(body))
            elif path.startswith("/api/"):
                _, _, kind, owner, name, *more = path.split("/")
                self._repository(f"{kind}/{owner}/{name}", more[0] if more else "", body)
            else:
                self._say(404, {})

        do_GET = do_POST = do_PUT = _serve

        def _create(self, asked: dict[str, Any]) -> None:
            kind = {"model": "models", "dataset": "datasets"}[asked["type"]]
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "somebody-else":
                self._say(403, {"error": "You don't have the rights to create a repository under this namespace"})
            elif f"{kind}/{name}" in hub.visibility:
                self._say(409, {"error": "You already created this repository", "url": f"{hub.url}/{name}"})
            else:
                hub.visibility[f"{kind}/{name}"] = asked.get("visibility", "public")
                hub.files[f"{kind}/{name}"] = {}
                self._say(200, {"url": f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name})

        def _batch(self, asked: dict[str, Any]) -> None:
            objects = [
                each | {"authenticated": True, "actions": {"upload": {"href": f"{hub.url}/put/{each['oid']}", "header": {}}}}
                for each in asked["objects"]
            ]
            self._say(200, {"transfer": "basic", "objects": objects})

        def _repository(self, key: str, what: str, body: bytes) -> None:
            if key not in hub.visibility:
                self._say(404, {"error": "Repository not found"})
            elif what == "preupload":
                modes = [
                    {
                        "path": file["path"], "shouldIgnore": False,
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    }
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                self._say(200, {"files": modes})
            elif what == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[key][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[key][line["value"]["path"]] = hub.large[line["value"]["oid"]]
                self._say(200, {"commitUrl": f"{hub.url}/{key}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""})
            else:
                name = key.partition("/")[2]
                self._say(200, {"id": name, "private": hub.visibility[key] == "private", "sha": "0" * 40, "siblings": [], "tags": []})

        def _say(self, status: int, data: Any) -> None:
            content = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A model hub on the loopback: enough of its protocol for the real `huggingface_hub` client, downloads and uploads.

Repositories are kept in memory or served from folders, one commit each. Use it as a context manager, and point HF_ENDPOINT
at `address`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"


@dataclass
class Repository:
    """One model: its files, who may read it, and how its downloads fail.

    access: "open", "gated" (listed, but files are for those with a token) or "private" (unknown without a token)
    cuts: connections that end in the middle of a file; status: answers everything with this code
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    access: str = "open"
    cuts: int = 0
    status: int = 0
    revisions: tuple[str, ...] = ("main",)

    def content(self, name: str) -> bytes:
        value = self.files[name]
        return value if isinstance(value, bytes) else value.read_bytes()

    @property
    def sha(self) -> str:
        digest = hashlib.sha1()
        for name in sorted(self.files):
            digest.update(name.encode() + self.etag(name).encode())
        return digest.hexdigest()

    def etag(self, name: str) -> str:
        value = self.files[name]
        told = (
            value if isinstance(value, bytes) else f"{value} {value.stat().st_size} {value.stat().st_mtime_ns}".encode()
        )
        return hashlib.sha1(told).hexdigest()


class LoopbackHub:
    """The server; `requests` lists (method, path) of all that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, folder: Path | None = None, only: tuple[str, ...] = (), **options: object) -> Repository:
        """Serve the files of `folder` (of those names, or all) as the model `name`."""
        files = {p.name: p for p in sorted(folder.iterdir()) if not only or p.name in only} if folder else {}
        self.repositories[name] = Repository(dict(files), **options)  # type: ignore[arg-type]
        return self.repositories[name]

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *parts: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        routes = (
            ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            ("GET|HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
            ("POST", r"/api/validate-yaml", lambda body: self._json({"errors": [], "warnings": []})),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/objects/(\w+)", self._store),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
        )
        for methods, pattern, answer in routes:
            if (found := re.fullmatch(pattern, self.path)) and self.command in methods.split("|"):
                return answer(*found.groups(), body)
        self._refuse(404, "EntryNotFound")

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', X_Error_Code=code, X_Error_Message=code)

    def _known(self, name: str) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, revision: str, files: bool) -> Repository | None:
        """The repository, or None after it was refused as the hub refuses."""
        found = self.hub.repositories.get(name)
        if found is None or (found.access == "private" and not self._known(name)):
            self._refuse(401 if not self._known(name) else 404, "RepoNotFound")
        elif found.status:
            self._refuse(found.status, "")
        elif found.access == "gated" and files and not self._known(name):
            self._refuse(401, "GatedRepo")
        elif found.access == "refused" and files:
            self._refuse(403, "GatedRepo")
        elif revision not in (*found.revisions, found.sha):
            self._refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def _info(self, name: str, revision: str, body: bytes) -> None:
        if found := self._repository(name, revision, files=False):
            self._json(
                {
                    "_id": "0", "id": name, "modelId": name, "sha": found.sha, "private": found.access == "private",
                    "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": file} for file in found.files],
                }
            )  # fmt: skip

    def _file(self, name: str, revision: str, file: str, body: bytes) -> None:
        found = self._repository(name, revision, files=True)
        if found is None:
            return
        if file not in found.files:
            return self._refuse(404, "EntryNotFound")
        content = found.content(file)
        start = int(re.sub(r"\D", "", (self.headers.get("Range") or "bytes=0-").split("-")[0]) or 0)
        headers = {"ETag": f'"{found.etag(file)}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        if self.command == "GET" and found.cuts and len(rest) > 20_000:
            found.cuts -= 1
            self.send_response(206 if start else 200)
            for key, value in {**headers, "Content-Length": str(len(rest))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self._send(206 if start else 200, rest, **headers)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = "/".join(part for part in (asked.get("organization") or "me", asked["name"]) if part)
        if not self._known(name):
            return self._refuse(401, "")
        if name in self.hub.repositories:
            return self._json({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
        self.hub.repositories[name] = Repository(
            access="private" if "private" in (asked.get("visibility"), asked.get("private") and "private") else "open"
        )
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": "0"})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        if self._repository(name, revision, files=True):
            large = (".safetensors", ".onnx", ".bin")
            self._json(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                         "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                }
            )  # fmt: skip

    def _batch(self, name: str, body: bytes) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{self.hub.address}/objects/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]  # fmt: skip
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(422, "")
        self.hub.objects[oid] = body
        self._send(200)

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        found = self._repository(name, revision, files=True)
        if found is None:
            return
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
        self._json(
            {"success": True, "commitOid": found.sha, "commitUrl": f"{self.hub.address}/{name}/commit/{found.sha}"}
        )

"""A Hub on the loopback: repositories from local folders, with the answers that huggingface_hub 2.4 builds on.

    GET      /api/models/ORG/NAME[/revision/REV]     commit, and the files with sizes and hashes
    HEAD|GET /ORG/NAME/resolve/REV/PATH              a small file itself, or a redirect to the storage for a large one
    GET      (storage) /SHA256                       another origin, which refuses requests that carry a token

Every byte of a body is counted under the file's path, and every request is kept. No answer offers Xet, so large files
come over plain HTTP.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MEMBER, STRANGER = "hf_member", "hf_stranger"
CHUNK = 16 * 1024


@dataclass(frozen=True)
class Blob:
    """A file at one commit; `sha256` only where it is stored as a large file."""

    label: str
    path: Path
    size: int
    blob_id: str
    sha256: str | None


@dataclass
class Repository:
    """`gated` opens files to MEMBER alone but shows the listing to all; `private` hides everything from others."""

    revisions: dict[str, str] = field(default_factory=dict[str, str])
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict[str, dict[str, Blob]])
    gated: bool = False
    private: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class HubServer:
    """Start with `with HubServer() as hub`; `hub.url` is what HF_ENDPOINT is to be.

    `answer` may take over a request of the Hub: it is given the handler and says whether it has answered.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.sent: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.ranges = True
        self.delay = 0.0
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.lock = threading.Lock()
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, self))
        self._storage = ThreadingHTTPServer(("127.0.0.1", 0), partial(StorageHandler, self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self._storage.server_address[1]}"

    def __enter__(self) -> "HubServer":
        for server in (self._hub, self._storage):
            server.daemon_threads = True
            threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    def add(self, repo: str, folder: Path, *, revision: str = "main", gated: bool = False, private: bool = False) -> str:
        """Put the files of a folder into a repository; the commit."""
        repository = self.repositories.setdefault(repo, Repository())
        repository.gated, repository.private = gated, private
        blobs = {
            path.relative_to(folder).as_posix(): describe(path, f"{repo}/{path.relative_to(folder).as_posix()}")
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        commit = hashlib.sha1("".join(f"{name}{blob.blob_id}" for name, blob in blobs.items()).encode()).hexdigest()
        repository.revisions |= {revision: commit, commit: commit}
        repository.commits[commit] = blobs
        return commit

    def blob(self, sha256: str) -> Blob:
        commits = (commit for repository in self.repositories.values() for commit in repository.commits.values())
        return next(blob for commit in commits for blob in commit.values() if blob.sha256 == sha256)

    def weights_sent(self) -> int:
        return sum(count for label, count in self.sent.items() if label.endswith(".safetensors"))

    def forget(self) -> None:
        self.sent.clear()
        self.requests.clear()


def describe(path: Path, label: str) -> Blob:
    stat = path.stat()
    blob_id, sha256 = digests(path, stat.st_mtime_ns)
    large = path.suffix in (".safetensors", ".ckpt", ".bin")
    return Blob(label, path, stat.st_size, blob_id, sha256 if large else None)


@lru_cache
def digests(path: Path, changed: int) -> tuple[str, str]:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


class Refusal(Exception):
    """An answer that is an error, with the headers by which huggingface_hub tells errors apart."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # head and body are two writes, and the second would wait 40 ms for the first's acknowledgement
    disable_nagle_algorithm = True

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, self.headers.get("Range"), token))
        time.sleep(self.hub.delay)
        try:
            self.reply(token)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, token: str | None) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes, headers: dict[str, str], label: str | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), CHUNK):
                piece = body[start : start + CHUNK]
                # counted first: once a client has the bytes, a test may look
                if label:
                    with self.hub.lock:
                        self.hub.sent[label] += len(piece)
                self.wfile.write(piece)
        except ConnectionError:
            self.close_connection = True

    def send_file(self, blob: Blob, headers: dict[str, str]) -> None:
        data = blob.path.read_bytes()
        asked = self.headers.get("Range")
        if asked is None or not self.hub.ranges:
            return self.send(200, data, headers, blob.label)
        first, last = asked.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or blob.size), blob.size - 1) + 1
        if start >= blob.size:
            raise Refusal(416, None, "the range begins after the end")
        found = {"Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}
        return self.send(206, data[start:stop], headers | found, blob.label)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: tests look at `requests`."""


class HubHandler(Handler):
    def reply(self, token: str | None) -> None:
        if self.hub.answer(self):
            return
        if token not in (None, MEMBER, STRANGER):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "models", org, name, *rest]:
                repository = self.find(f"{org}/{name}", token)
                self.send_listing(f"{org}/{name}", repository, rest[1] if rest else "main")
            case [org, name, "resolve", revision, *path]:
                self.send_resolved(self.find(f"{org}/{name}", token), revision, "/".join(path), token)
            case _:
                raise Refusal(404, None, "Not Found")

    def find(self, repo: str, token: str | None) -> Repository:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and token != MEMBER):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        return repository

    def send_listing(self, repo: str, repository: Repository, revision: str) -> None:
        commit = self.commit(repository, revision)
        siblings: list[dict[str, Any]] = []
        for name, blob in repository.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": blob.size, "blobId": blob.blob_id}
            if blob.sha256:
                entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
            siblings.append(entry)
        gated = "auto" if repository.gated else False
        listing = {"id": repo, "modelId": repo, "sha": commit, "gated": gated, "siblings": siblings}
        self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def send_resolved(self, repository: Repository, revision: str, path: str, token: str | None) -> None:
        commit = self.commit(repository, revision)
        if repository.gated and token != MEMBER:
            raise Refusal(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.blob_id}"'}
        if blob.sha256 is None:
            return self.send_file(blob, headers)
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        location = {"Location": f"{self.hub.storage}/{blob.sha256}?X-Amz-Signature=secret"}
        return self.send(302, b"Found", headers | linked | location)

    def commit(self, repository: Repository, revision: str) -> str:
        if revision not in repository.revisions:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.revisions[revision]


class StorageHandler(Handler):
    def reply(self, token: str | None) -> None:
        if token is not None:
            raise Refusal(400, None, "Only one auth mechanism allowed")
        blob = self.hub.blob(urlsplit(self.path).path.strip("/"))
        self.send_file(blob, {"ETag": f'"{blob.sha256}"', "Accept-Ranges": "bytes"})

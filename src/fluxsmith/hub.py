"""References to files, folders and Hub repositories, and reading what lies on the Hub.

    a path                       a file or folder on this machine; one that exists wins over the forms below
    pocket/NAME                  a tiny checkpoint that ships in the package
    org/name[@revision][:path]   a repository on the Hub; `path` is a file or a folder in it

HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read at every call: huggingface_hub itself reads them when it is imported.
"""

import errno
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from fluxsmith.errors import FileError, FluxsmithError, HubError, ResourceError, did_you_mean

__all__ = [
    "HubFile",
    "HubFolder",
    "HubReference",
    "cache_folder",
    "endpoint",
    "is_offline",
    "open_repository",
    "parse_reference",
    "pocket_folder",
]

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_FORM = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>[^\s:@/][^\s:@]*))?(?::/*(?P<path>.*?)/*)?")


@dataclass(frozen=True)
class HubReference:
    """`org/name[@revision][:path]`; no revision means the main branch, no path lets the weights be looked for."""

    repo: str
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.path}" if self.path else "")

    @property
    def download_command(self) -> str:
        """For messages: the command of huggingface_hub that puts what is named into the cache."""
        path = self.path or ""
        if path and not path.lower().endswith(WEIGHT_SUFFIXES):
            path = f"--include '{path}/*'"
        return " ".join(filter(None, ["hf download", self.repo, path, f"--revision {self.revision}" if self.revision else ""]))


def parse_reference(reference: str) -> Path | HubReference:
    """What a reference means, without asking the Hub.

    Raises FileError where it names neither something on this machine nor, by its form, a repository.
    """
    local = os.path.expanduser(reference)
    # lexists: a dangling link is a local file as well, and the one who opens it can say what is wrong with it
    if os.path.lexists(local):
        return Path(local)
    if reference.startswith("pocket/"):
        return _find_pocket(reference.removeprefix("pocket/"))
    found = _match_hub_form(reference)
    if found is None:
        raise FileError(
            "file.not-found",
            f"`{reference}` does not exist",
            facts={"looked at": os.path.abspath(local)},
            fix="check the path; a repository on the Hub is written org/name[@revision][:path]",
        )
    return found


def _match_hub_form(reference: str) -> HubReference | None:
    match = _HUB_FORM.fullmatch(reference)
    if match is None:
        return None
    repo, revision, path = match["repo"], match["revision"], match["path"] or None
    if path is None and reference.lower().endswith(WEIGHT_SUFFIXES):
        return None
    # names that the Hub cannot have, and that could lead out of the cache folder
    if "--" in repo or ".." in f"{repo}@{revision}" or repo.endswith(".git"):
        return None
    return HubReference(repo, revision, path)


def pocket_folder() -> Path:
    """Where the tiny checkpoints lie that ship in the package."""
    # by the root package: importing fluxsmith.pocket is not needed to find its data
    return Path(str(resources.files("fluxsmith").joinpath("pocket", "weights")))


def _find_pocket(name: str) -> Path:
    folder = pocket_folder()
    known = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if name not in known:
        raise FileError(
            "pocket.unknown-name",
            f"there is no pocket checkpoint `{name}`",
            facts={"known": ", ".join(known) or "none"},
            fix=did_you_mean(name, known) or "name one of these",
        )
    return folder / name


def endpoint() -> str:
    """The address of the Hub, from HF_ENDPOINT where it is set."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for work from the cache alone."""
    from huggingface_hub import constants

    return constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES


def cache_folder() -> Path:
    """The cache of huggingface_hub, shared with the other programs that use it."""
    from huggingface_hub import constants

    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(os.path.expanduser(value))) / below
    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class HubFile:
    """A file in a repository. `etag` is its sha256 where it is stored as a large file, else its git blob id."""

    size: int
    etag: str


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository at one commit: listed once, its files read or downloaded on demand.

    `files` are all files in and below it, named relative to it; `root` is its path in the repository, "" at the top.
    """

    repo: str
    revision: str
    commit: str
    files: Mapping[str, HubFile]
    root: str = ""
    offline: bool = False

    @property
    def name(self) -> str:
        """For messages: what the reader asked for rather than the commit."""
        place = str(HubReference(self.repo, self.revision, self.root or None))
        return f"{place} (as far as it is in the cache)" if self.offline else place

    def path(self, name: str) -> str:
        """The path in the repository of a file of this folder."""
        return f"{self.root}/{name}" if self.root else name

    def names(self) -> list[str]:
        """The files directly in this folder."""
        return sorted(name for name in self.files if "/" not in name)

    def folder(self, path: str) -> "HubFolder":
        """A folder below this one; raises HubError where there is none."""
        if not path:
            return self
        below = f"{path}/"
        files = {name.removeprefix(below): file for name, file in self.files.items() if name.startswith(below)}
        if not files:
            raise self._no_file(path)
        return replace(self, files=files, root=self.path(path))

    def text(self, name: str) -> str:
        """The text of a small file; raises as `read` does."""
        return self.read(name, 0, self._file(name).size).decode()

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a file, cut at its end; from the cache where the file is there.

        Raises HubError (exit code 6) where the Hub does not give them, or gives fewer.
        """
        length = min(length, self._file(name).size - offset)
        if length <= 0:
            return b""
        if (cached := self._snapshot / name).is_file():
            with cached.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        with _hub_errors(self.repo, self.revision):
            data = _read_range(self.repo, self.commit, self.path(name), offset, length)
        if len(data) < length:
            raise HubError(
                "hub.failed",
                f"{self.name} sent {len(data):,} of {length:,} bytes of {name}",
                facts={"file": self.path(name), "from": endpoint()},
                fix="try again; behind a proxy, check that it passes Range requests",
            )
        return data

    def download(self, names: Sequence[str]) -> Path:
        """Put files into the cache of huggingface_hub, and give the local folder that stands for this one.

        Raises HubError (exit code 6) where the Hub does not give a file, ResourceError (5) where the disk is full.
        """
        from huggingface_hub import hf_hub_download

        for name in names:
            self._file(name)
            with _hub_errors(self.repo, self.revision):
                hf_hub_download(
                    self.repo,
                    self.path(name),
                    revision=self.commit,
                    endpoint=endpoint(),
                    cache_dir=cache_folder(),
                )
        self._remember_revision()
        return self._snapshot

    @property
    def _snapshot(self) -> Path:
        return _storage(self.repo) / "snapshots" / self.commit / self.root

    def _file(self, name: str) -> HubFile:
        if name not in self.files:
            raise self._no_file(name)
        return self.files[name]

    def _no_file(self, path: str) -> HubError:
        folders = {parent for name in self.files for parent in _parents(name)}
        near = did_you_mean(path, [*self.files, *folders])
        found = sorted({name.split("/")[0] for name in self.files})
        return HubError(
            "hub.no-file",
            f"{self.name} has no file or folder `{path}`",
            facts={"found": ", ".join(found[:20]) or "nothing"},
            fix=near or f"see {endpoint()}/{self.repo}/tree/{self.revision}",
        )

    def _remember_revision(self) -> None:
        """Let the revision be found again without a network: hf_hub_download notes only those it resolved itself."""
        if self.revision == self.commit or self.offline:
            return
        ref = _storage(self.repo) / "refs" / self.revision
        try:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(self.commit)
        except OSError:
            return  # a cache that is read-only serves all the same


def open_repository(reference: HubReference) -> HubFolder:
    """All files of a repository at the reference's revision, in one request; from the cache under HF_HUB_OFFLINE.

    Raises HubError (exit code 6) where the repository or the revision is missing or closed, or nobody answers.
    """
    from huggingface_hub import HfApi, constants

    if is_offline():
        return _cached_repository(reference)
    revision = reference.revision or constants.DEFAULT_REVISION
    with _hub_errors(reference.repo, revision):
        info = HfApi(endpoint=endpoint()).model_info(
            reference.repo,
            revision=reference.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        files = {
            file.rfilename: _describe(file.rfilename, file.lfs.size, file.lfs.sha256)
            if file.lfs
            else _describe(file.rfilename, file.size, file.blob_id)
            for file in info.siblings or []
        }
        if info.sha is None:
            raise ValueError("the listing names no commit")
    return HubFolder(reference.repo, revision, info.sha, files)


def _describe(name: str, size: int | None, etag: str | None) -> HubFile:
    if size is None or etag is None:
        raise ValueError(f"the listing tells no size of {name}")
    return HubFile(size, etag)


def _cached_repository(reference: HubReference) -> HubFolder:
    revision = reference.revision or "main"
    ref = _storage(reference.repo) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = _storage(reference.repo) / "snapshots" / commit
    if not snapshot.is_dir():
        raise HubError(
            "hub.offline",
            f"{reference} is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub",
            facts={"cache": cache_folder()},
            fix=f"unset HF_HUB_OFFLINE, or first, with a network: {reference.download_command}",
        )
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    files = {path.relative_to(snapshot).as_posix(): _describe_cached(path) for path in paths}
    return HubFolder(reference.repo, revision, commit, files, offline=True)


def _describe_cached(path: Path) -> HubFile:
    stat = path.stat()
    # a snapshot links to blobs that are named by their ETag; on a disk without links it holds copies
    etag = path.resolve().name if path.is_symlink() else f"{stat.st_size}:{stat.st_mtime_ns}"
    return HubFile(stat.st_size, etag)


def _storage(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    yield from ("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def _read_range(repo: str, commit: str, path: str, offset: int, length: int) -> bytes:
    """At most `length` bytes. Redirects to where large files lie are followed; the token stays with the Hub."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(repo, path, revision=commit, endpoint=endpoint())
    # a compressed answer would have other ranges
    extra = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
    stream = http_stream_backoff(
        "GET",
        url,
        headers={**build_hf_headers(), **extra},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
        max_retries=2,
        # a retry after the first byte would make the context manager yield twice, which Python forbids
        retry_on_exceptions=(),
    )
    data = bytearray()
    with stream as response:
        hf_raise_for_status(response)
        if response.status_code != 206 and offset > 0:
            return b""
        # an answer without ranges is the whole file: take its head and hang up
        for chunk in response.iter_bytes(64 * 1024):
            data += chunk
            if len(data) >= length:
                break
    return bytes(data[:length])


@contextmanager
def _hub_errors(repo: str, revision: str) -> Generator[None]:
    """Turn what huggingface_hub and its HTTP client raise into errors that say what to do."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError) as error:
        raise _explain(error, repo, revision) from error


def _explain(error: BaseException, repo: str, revision: str) -> FluxsmithError:
    import httpx2
    from huggingface_hub import errors

    match error:
        case errors.LocalEntryNotFoundError() if error.__cause__ is not None:
            return _explain(error.__cause__, repo, revision)
        case errors.GatedRepoError():
            return _gated(repo)
        case errors.RepositoryNotFoundError():
            return _not_found(repo)
        case errors.RevisionNotFoundError():
            return _no_revision(repo, revision)
        case errors.HfHubHTTPError():
            answer = error.server_message or _first_line(error)
            return _refused(repo, error.response.status_code, answer, str(error.response.url))
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return _unreachable(error)
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return _unreachable(error)
        case OSError() if error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _unwritable(error, repo)
        case _:
            return HubError(
                "hub.failed",
                f"{repo} could not be read from {endpoint()}",
                facts={"cause": _first_line(error)},
                fix="try again; check HF_ENDPOINT, the proxy and the firewall",
            )


def _gated(repo: str) -> HubError:
    return HubError(
        "hub.gated",
        f"{repo} needs licence acceptance by this account",
        facts={"note": "nothing was downloaded; `fluxsmith plan` works from headers once access is given"},
        fix=f"accept at {endpoint()}/{repo}, then: hf auth login",
    )


def _not_found(repo: str) -> HubError:
    return HubError(
        "hub.not-found",
        f"there is no repository {repo} on the Hub, or it is private",
        facts={"looked at": f"{endpoint()}/{repo}", "note": "there is no local file or folder of this name either"},
        fix="check the name; if it is private: hf auth login",
    )


def _no_revision(repo: str, revision: str) -> HubError:
    return HubError(
        "hub.no-revision",
        f"{repo} has no branch, tag or commit `{revision}`",
        fix=f"choose one from {endpoint()}/{repo}/commits, or leave out @{revision}",
    )


def _refused(repo: str, status: int, answer: str, address: str) -> HubError:
    # a signed address is a key to the file: messages go without its query
    facts = {"answer": answer.split("\n")[0], "address": address.split("?")[0]}
    if status == 401:
        fix = "hf auth login, or unset HF_TOKEN"
        return HubError("hub.bad-token", "the Hub does not accept the access token", facts=facts, fix=fix)
    fix = "check what the access token may do" if status == 403 else "try again in a few minutes"
    return HubError("hub.failed", f"the Hub answered {status} when asked for {repo}", facts=facts, fix=fix)


def _unreachable(error: BaseException) -> HubError:
    return HubError(
        "hub.offline",
        f"{endpoint()} cannot be reached",
        facts={"cause": _first_line(error)},
        fix="check the connection and try again; HF_HUB_OFFLINE=1 uses what is in the cache",
    )


def _unwritable(error: OSError, repo: str) -> ResourceError:
    return ResourceError(
        "disk.cannot-write",
        f"{repo} cannot be written to the cache: {(error.strerror or 'an error of the disk').lower()}",
        facts={"cache": cache_folder(), "cause": _first_line(error)},
        fix="make room, or let HF_HOME name a folder on another disk",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

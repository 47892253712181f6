"""What a user reads when the Hub gives nothing: one error with a code and a remedy, never a traceback of a library."""

import errno
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from fluxsmith.errors import FluxsmithError, HubError, ResourceError
from fluxsmith.hub import HubReference, open_repository
from fluxsmith.io.references import open_reference

from .server import MEMBER, STRANGER, HubServer


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "transformer").mkdir(parents=True)
    save_file({"weight": torch.zeros(64, 64)}, folder / "transformer" / "model.safetensors")
    (folder / "transformer" / "config.json").write_text("{}")
    return folder


def error_of(reference: str, *, download: bool = False) -> FluxsmithError:
    with pytest.raises(FluxsmithError) as caught:
        open_reference(reference, download=download)
    return caught.value


@pytest.mark.parametrize("token", [None, STRANGER])
def test_gated(hub: HubServer, repo: Path, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add("black-forest-labs/FLUX.1-dev", repo, gated=True)
    for download in (False, True):
        error = error_of("black-forest-labs/FLUX.1-dev", download=download)
        assert isinstance(error, HubError)
        assert error.exit_code == 6
        assert str(error) == (
            "error[hub.gated]: black-forest-labs/FLUX.1-dev needs licence acceptance by this account\n"
            "  note  nothing was downloaded; `fluxsmith plan` works from headers once access is given\n"
            f"  fix   accept at {hub.url}/black-forest-labs/FLUX.1-dev, then: hf auth login"
        )
    assert not hub.sent
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    assert open_reference("black-forest-labs/FLUX.1-dev", download=True).tensors


def test_a_gated_listing_says_the_same(hub: HubServer, repo: Path) -> None:
    def gate(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(403)
        handler.send_header("X-Error-Code", "GatedRepo")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    hub.answer = gate
    assert error_of("org/name").code == "hub.gated"


def test_the_licence_page_is_the_hubs_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxsmith.hub import endpoint

    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    assert endpoint() == "http://mirror.example"


@pytest.mark.parametrize("token", [None, STRANGER])
def test_missing_or_private(hub: HubServer, repo: Path, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add("org/secret", repo, private=True)
    for name in ("org/missing", "org/secret"):
        error = error_of(name)
        assert (error.code, error.exit_code) == ("hub.not-found", 6)
        assert name in error.message
        assert "private" in error.message
        assert "hf auth login" in (error.fix or "")
        assert "local" in error.facts["note"]


def test_missing_revision(hub: HubServer, repo: Path) -> None:
    hub.add("org/name", repo)
    error = error_of("org/name@v9")
    assert (error.code, error.exit_code) == ("hub.no-revision", 6)
    assert "`v9`" in error.message


@pytest.mark.parametrize("download", [False, True])
def test_missing_file(hub: HubServer, repo: Path, download: bool) -> None:
    hub.add("org/name", repo)
    error = error_of("org/name:transformer/modle.safetensors", download=download)
    assert (error.code, error.exit_code) == ("hub.no-file", 6)
    assert error.fix == "did you mean `transformer/model.safetensors`?"
    assert error_of("org/name:transfomer").fix == "did you mean `transformer`?"
    # the beginning of a name is not a folder
    assert error_of("org/name:trans").code == "hub.no-file"
    assert hub.weights_sent() == 0


def test_a_file_that_went_away_since_the_listing(hub: HubServer, repo: Path) -> None:
    commit = hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name"))
    del hub.repositories["org/name"].commits[commit]["transformer/config.json"]
    for act in (lambda: folder.text("transformer/config.json"), lambda: folder.download(["transformer/config.json"])):
        with pytest.raises(HubError) as caught:
            act()
        assert caught.value.code == "hub.failed"
        assert caught.value.facts["answer"] == "Entry not found"


def test_a_wrong_token(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo)
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    error = error_of("org/name")
    assert (error.code, error.exit_code) == ("hub.bad-token", 6)


def test_connection_refused(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    error = error_of("org/name")
    assert (error.code, error.exit_code) == ("hub.offline", 6)
    assert f"127.0.0.1:{port}" in error.message
    assert "try again" in (error.fix or "")
    assert time.monotonic() - start < 2


def test_refused_after_the_listing(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubError) as caught:
        folder.text("transformer/config.json")
    assert caught.value.code == "hub.offline"


def test_an_endpoint_that_is_no_address(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("nonsense", "http://[::1", "ftp://127.0.0.1"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert error_of("org/name").code == "hub.offline"


def test_timeout(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.delay = 0.5
    for act in (lambda: open_repository(HubReference("org/name")), lambda: folder.text("transformer/config.json")):
        with pytest.raises(HubError) as caught:
            act()
        assert caught.value.code == "hub.offline"


def test_offline_without_a_copy(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = error_of("org/name@v1:transformer", download=True)
    assert (error.code, error.exit_code) == ("hub.offline", 6)
    assert "HF_HUB_OFFLINE" in (error.fix or "")
    assert "hf download org/name --include 'transformer/*' --revision v1" in (error.fix or "")
    assert hub.requests == []


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "org/name@refs/pr/1", "org/name:transformer"])
def test_offline_with_a_copy(hub: HubServer, repo: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo, revision="refs/pr/1")
    hub.add("org/name", repo)
    first = open_reference(reference, download=True)
    remote = open_reference(reference, download=False)
    hub.forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_reference(reference, download=True) == first
    assert open_reference(reference, download=False).files == remote.files
    assert hub.requests == []


def test_offline_with_a_part_says_so(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"other": torch.zeros(4)}, repo / "other.safetensors")
    hub.add("org/name", repo)
    open_reference("org/name", download=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = error_of("org/name:other.safetensors", download=True)
    assert error.code == "hub.no-file"
    assert "as far as it is in the cache" in error.message


def test_an_answer_that_is_not_the_hubs(hub: HubServer) -> None:
    def portal(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "24")
        handler.end_headers()
        handler.wfile.write(b"<html>Please log in</h>  ")
        return True

    hub.answer = portal
    error = error_of("org/name")
    assert (error.code, error.exit_code) == ("hub.failed", 6)
    assert "HF_ENDPOINT" in (error.fix or "")


def test_a_server_that_is_broken(hub: HubServer) -> None:
    def broken(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    hub.answer = broken
    error = error_of("org/name")
    assert (error.code, error.exit_code) == ("hub.failed", 6)
    assert "500" in error.message


def test_what_stopped_a_download_is_told(hub: HubServer, repo: Path) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name"))

    def forbidden(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(403)
        handler.send_header("X-Error-Message", "this token may not read files")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    hub.answer = forbidden
    with pytest.raises(HubError) as caught:
        folder.download(["transformer/config.json"])
    assert (caught.value.code, caught.value.facts["answer"]) == ("hub.failed", "this token may not read files")
    assert "token" in (caught.value.fix or "")


def test_a_signed_address_is_not_shown(hub: HubServer, repo: Path) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name")).folder("transformer")
    (repo / "transformer" / "model.safetensors").unlink()
    (repo / "transformer" / "model.safetensors").touch()
    blob = next(iter(hub.repositories["org/name"].commits.values()))["transformer/model.safetensors"]
    object.__setattr__(blob, "size", 0)
    with pytest.raises(HubError) as caught:
        folder.read("model.safetensors", 0, 8)
    assert caught.value.code == "hub.failed"
    assert caught.value.facts["address"].startswith(hub.storage)
    assert "secret" not in str(caught.value)


def test_a_file_shorter_than_the_listing_says(hub: HubServer, repo: Path) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name")).folder("transformer")
    path = repo / "transformer" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HubError) as caught:
        folder.read("model.safetensors", 0, 200)
    assert "100 of 200 bytes" in caught.value.message


@pytest.mark.parametrize("cached", [False, True])
def test_reading_a_range_stops_at_the_end(hub: HubServer, repo: Path, cached: bool) -> None:
    hub.add("org/name", repo)
    folder = open_repository(HubReference("org/name")).folder("transformer")
    if cached:
        folder.download(["model.safetensors"])
    hub.forget()
    data = (repo / "transformer" / "model.safetensors").read_bytes()
    assert folder.read("model.safetensors", len(data) - 5, 100) == data[-5:]
    assert folder.read("model.safetensors", len(data), 100) == b""
    assert folder.read("model.safetensors", 3, 4) == data[3:7]
    assert hub.weights_sent() == (0 if cached else 5 + 4)


def test_a_server_without_ranges_gives_no_middle(hub: HubServer, repo: Path) -> None:
    hub.add("org/name", repo)
    hub.ranges = False
    with pytest.raises(HubError) as caught:
        open_repository(HubReference("org/name")).folder("transformer").read("model.safetensors", 3, 4)
    assert "0 of 4 bytes" in caught.value.message
    assert "Range" in (caught.value.fix or "")


def test_a_full_disk(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.add("org/name", repo)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    error = error_of("org/name", download=True)
    assert isinstance(error, ResourceError)
    assert (error.code, error.exit_code) == ("disk.cannot-write", 5)
    assert "HF_HOME" in (error.fix or "")


def test_a_cache_that_cannot_be_made(hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", repo)
    monkeypatch.setenv("HF_HOME", str(repo / "transformer" / "config.json"))
    assert error_of("org/name", download=True).code == "disk.cannot-write"

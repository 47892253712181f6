"""Opening checkpoints on the Hub: which part of a repository, how many bytes for it, and what a download brings."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxsmith.errors import FileError, HubError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.opening import open_checkpoint
from fluxsmith.io.references import FIRST_READ, open_reference
from fluxsmith.io.views import View
from support.tiny_pipelines import PIPELINES, save_pipeline

from .server import HubServer

DEV = "black-forest-labs/FLUX.1-dev"


def layout(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], set[str], int]]:
    """What must be the same wherever a checkpoint lies."""
    return {key: (view.shape, view.dtypes, view.extents[0].offset) for key, view in checkpoint.tensors.items()}


def read(view: View) -> torch.Tensor:
    data = b""
    for extent in view.extents:
        with Path(extent.file).open("rb") as file:
            file.seek(extent.offset)
            data += file.read(extent.nbytes)
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(view.shape)


def refused(reference: str, **options: bool) -> FileError | HubError:
    with pytest.raises((FileError, HubError)) as caught:
        open_reference(reference, **{"download": False, **options})
    return caught.value


def small_repository(folder: Path, names: Mapping[str, str]) -> Path:
    """Files of one tensor each, named by the file and the key."""
    for name, key in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: torch.zeros(4)}, folder / name)
    return folder


def test_headers_of_a_sharded_repository_cost_a_fraction_of_its_weights(hub: HubServer, pipeline: Path) -> None:
    commit = hub.add(DEV, pipeline)
    found = open_reference(DEV, download=False)
    local = open_checkpoint(pipeline)
    assert len(local.files) == 3
    assert layout(found) == layout(local)
    assert found.config == local.config
    assert found.metadata == local.metadata
    assert found.reference == DEV
    # one request for each shard, and nothing of the weights but what stands behind a header in its first bytes
    assert 0 < hub.weights_sent() <= 3 * FIRST_READ < 0.05 * local.nbytes
    assert len([request for request in hub.requests if request.range]) == 2 * 3 + 2
    for file, shard in zip(found.files, local.files, strict=True):
        name = f"transformer/{Path(shard.path).name}"
        assert file.path == f"{DEV}@{commit}:{name}"
        assert file.remote == f"hf://{DEV}@main/{name}#{commit}"
        assert file.size == shard.size
        assert file.stamp == hashlib.sha256(Path(shard.path).read_bytes()).hexdigest()
    assert {extent.file for view in found.tensors.values() for extent in view.extents} == {f.path for f in found.files}


def test_a_remote_path_is_itself_a_reference_to_the_same_bytes(hub: HubServer, pipeline: Path) -> None:
    hub.add(DEV, pipeline)
    shard = open_reference(DEV, download=False).files[0]
    hub.add(DEV, small_repository(pipeline.parent / "later", {"model.safetensors": "later"}))
    again = open_reference(shard.path, download=False)
    assert [(file.path, file.stamp) for file in again.files] == [(shard.path, shard.stamp)]


def test_a_download_is_exactly_what_holds_the_checkpoint(hub: HubServer, pipeline: Path, tmp_path: Path) -> None:
    hub.add(DEV, pipeline)
    found = open_reference(DEV, download=True)
    assert found.reference == DEV
    assert all(Path(file.path).is_relative_to(tmp_path / "hf") and file.remote is None for file in found.files)
    stock: dict[str, torch.Tensor] = {}
    for shard in (pipeline / "transformer").glob("*.safetensors"):
        stock |= load_file(shard)
    assert found.tensors.keys() == stock.keys()
    assert all(torch.equal(read(view), stock[key]) for key, view in found.tensors.items())
    assert found.config == json.loads((pipeline / "transformer" / "config.json").read_text())
    there = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/**/*") if path.is_file()}
    assert there == {path.name for path in (pipeline / "transformer").iterdir()}


def test_what_is_in_the_cache_is_not_fetched_again(hub: HubServer, pipeline: Path) -> None:
    hub.add(DEV, pipeline)
    first = open_reference(DEV, download=True)
    hub.forget()
    assert open_reference(DEV, download=True) == first
    assert layout(open_reference(DEV, download=False)) == layout(first)
    assert [request.path.split("?")[0] for request in hub.requests] == [f"/api/models/{DEV}"] * 2


def test_large_files_come_from_the_storage_without_the_token(hub: HubServer, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    hub.add(DEV, pipeline, gated=True)
    assert open_reference(DEV, download=False).files
    assert open_reference(DEV, download=True).files
    stored = [request for request in hub.requests if "X-Amz-Signature" in request.path]
    assert len(stored) == 3 + 3 + 3  # headers; headers again, then the files
    assert {request.token for request in stored} == {None}
    assert {request.token for request in hub.requests if request not in stored} == {"hf_member"}


@pytest.mark.parametrize("download", [False, True])
def test_one_file_by_its_path(hub: HubServer, pipeline: Path, download: bool) -> None:
    hub.add(DEV, pipeline)
    found = open_reference(f"{DEV}:flux1-dev.safetensors", download=download)
    assert (set(found.tensors), dict(found.metadata), found.config) == ({"img_in.weight"}, {"kind": "dev"}, None)
    assert found.reference == f"{DEV}:flux1-dev.safetensors"
    assert {label for label in hub.sent if "safetensors" in label} == {f"{DEV}/flux1-dev.safetensors"}


@pytest.mark.parametrize("download", [False, True])
def test_a_folder_by_its_path(hub: HubServer, pipeline: Path, download: bool) -> None:
    hub.add(DEV, pipeline)
    assert set(open_reference(f"{DEV}:text_encoder", download=download).tensors) == {"embedding"}
    explicit = open_reference(f"{DEV}:transformer", download=download)
    assert layout(explicit) == layout(open_reference(DEV, download=download))


@pytest.mark.parametrize("download", [False, True])
def test_the_config_beside_a_named_file_counts_where_it_is_the_files_own(hub: HubServer, tmp_path: Path, download: bool) -> None:
    folder = small_repository(tmp_path / "repo", {"model.safetensors": "a", "other.safetensors": "b"})
    (folder / "config.json").write_text('{"_class_name": "Tiny"}')
    hub.add("org/name", folder)
    assert open_reference("org/name:model.safetensors", download=download).config == {"_class_name": "Tiny"}
    assert open_reference("org/name:other.safetensors", download=download).config is None


@pytest.mark.parametrize("download", [False, True])
def test_a_revision(hub: HubServer, tmp_path: Path, download: bool) -> None:
    hub.add("org/name", small_repository(tmp_path / "new", {"model.safetensors": "new"}))
    old = hub.add("org/name", small_repository(tmp_path / "old", {"model.safetensors": "old"}), revision="refs/pr/1")
    assert set(open_reference("org/name", download=download).tensors) == {"new"}
    assert set(open_reference("org/name@refs/pr/1", download=download).tensors) == {"old"}
    assert set(open_reference(f"org/name@{old}:model.safetensors", download=download).tensors) == {"old"}
    assert set(open_reference("org/name@main", download=download).tensors) == {"new"}


def test_a_remote_file_names_the_revision_and_the_commit(hub: HubServer, tmp_path: Path) -> None:
    folder = small_repository(tmp_path / "repo", {"model.safetensors": "a"})
    commit = hub.add("org/name", folder, revision="refs/pr/1")
    (file,) = open_reference("org/name@refs/pr/1", download=False).files
    assert file.remote == f"hf://org/name@refs%2Fpr%2F1/model.safetensors#{commit}"


@pytest.mark.parametrize(
    ("names", "key"),
    [
        ({"flux.safetensors": "root", "transformer/model.safetensors": "inner"}, "inner"),
        ({"model.safetensors": "root", "unet/model.safetensors": "inner"}, "root"),
        ({"model.safetensors": "root", "model.fp16.safetensors": "half"}, "root"),
        ({"any-name.safetensors": "root", "vae/model.safetensors": "inner"}, "root"),
    ],
)
def test_which_weights_are_taken(hub: HubServer, tmp_path: Path, names: dict[str, str], key: str) -> None:
    hub.add("org/name", small_repository(tmp_path / "repo", names))
    assert set(open_reference("org/name", download=False).tensors) == {key}


def test_a_transformer_folder_counts_only_with_weights(hub: HubServer, tmp_path: Path) -> None:
    folder = small_repository(tmp_path / "repo", {"model.safetensors": "root"})
    (folder / "transformer").mkdir()
    (folder / "transformer" / "diffusion_pytorch_model.bin").touch()
    hub.add("org/name", folder)
    assert set(open_reference("org/name", download=False).tensors) == {"root"}


def test_an_index_makes_any_files_one_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    folder = small_repository(tmp_path / "repo", {"one.safetensors": "x", "two.safetensors": "y"})
    index = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("org/name", folder)
    assert set(open_reference("org/name", download=False).tensors) == {"x", "y"}


def test_several_checkpoints_side_by_side_must_be_named(hub: HubServer, tmp_path: Path) -> None:
    names = {"a/first.safetensors": "x", "a/second.safetensors": "y"}
    hub.add("org/name", small_repository(tmp_path / "repo", names), revision="v2")
    error = refused("org/name@v2:a")
    assert (error.code, error.exit_code) == ("hub.ambiguous", 3)
    assert error.facts["found"].split("\n")[1].startswith("second.safetensors  ")
    assert error.fix == "name one, as in org/name@v2:a/first.safetensors"
    assert hub.weights_sent() == 0
    assert set(open_reference(error.fix.split()[-1], download=False).tensors) == {"x"}


def test_a_pipeline_without_a_transformer_says_where_weights_are(hub: HubServer, tmp_path: Path) -> None:
    folder = small_repository(tmp_path / "repo", {"unet/model.safetensors": "x", "sdxl.safetensors": "y"})
    (folder / "model_index.json").write_text("{}")
    hub.add("org/sdxl", folder)
    error = refused("org/sdxl")
    assert (error.code, error.facts["weights in"]) == ("hub.no-weights", "unet")
    assert error.fix == "name a folder or file, as in org/sdxl:unet"


def test_a_repository_without_weights(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words")
    hub.add("org/name", tmp_path)
    error = refused("org/name")
    assert (error.code, error.facts["found"], error.fix) == ("hub.no-weights", "README.md", None)


def test_shards_without_an_index_are_told_apart_from_a_choice(hub: HubServer, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": str(i) for i in (1, 2)}
    hub.add("org/name", small_repository(tmp_path / "repo", shards))
    assert refused("org/name").code == "file.missing-index"


def test_a_broken_checkpoint_is_refused_before_its_weights_are_downloaded(hub: HubServer, transformer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    shutil.copytree(transformer, folder)
    next(folder.glob("*-00002-of-*")).unlink()
    hub.add("org/name", folder)
    assert refused("org/name", download=True).code == "file.missing-shard"
    assert hub.weights_sent() == 0


def test_a_header_longer_than_the_first_read_takes_two_requests(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(500_000)}, path, metadata={"thumbnail": "x" * (FIRST_READ + 1000)})
    hub.add("org/name", tmp_path)
    found = open_reference("org/name", download=False)
    with safe_open(path, "pt") as file:
        assert found.metadata == file.metadata()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert hub.sent["org/name/model.safetensors"] == 8 + length
    assert [request.range for request in hub.requests if "Signature" in request.path] == [
        f"bytes=0-{FIRST_READ - 1}",
        f"bytes={FIRST_READ}-{8 + length - 1}",
    ]


def test_a_server_without_ranges_is_left_after_the_header(hub: HubServer, tmp_path: Path) -> None:
    data = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(10_000_000)}, data)
    hub.add("org/name", tmp_path)
    hub.ranges = False
    assert set(open_reference("org/name", download=False).tensors) == {"weight"}
    assert hub.weights_sent() < 0.5 * data.stat().st_size


@pytest.mark.parametrize("download", [False, True])
def test_a_pickle_is_refused_by_what_it_is(hub: HubServer, tmp_path: Path, download: bool) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "flux.ckpt")
    hub.add("org/name", tmp_path)
    assert refused("org/name:flux.ckpt", download=download).code == "file.pickle"


def test_an_allowed_pickle_needs_the_download(hub: HubServer, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "flux.ckpt")
    hub.add("org/name", tmp_path)
    error = refused("org/name:flux.ckpt", allow_pickle=True)
    assert (error.code, error.fix) == ("file.pickle", "hf download org/name flux.ckpt --revision main")
    found = open_reference("org/name:flux.ckpt", download=True, allow_pickle=True)
    assert torch.equal(read(found.tensors["weight"]), torch.ones(3))
    assert found.reference == "org/name:flux.ckpt"


def test_a_local_reference_asks_nobody(hub: HubServer, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pipeline))
    found = open_reference("~/", download=True)
    assert found == open_checkpoint(pipeline, "~/")
    assert open_reference("~/ae.safetensors", download=False).tensors.keys() == {"decoder"}
    torch.save({"weight": torch.ones(3)}, tmp_path / "flux.ckpt")
    assert refused(str(tmp_path / "flux.ckpt")).code == "file.pickle"
    assert open_reference(str(tmp_path / "flux.ckpt"), download=False, allow_pickle=True).tensors.keys() == {"weight"}
    assert hub.requests == []


def test_a_pipeline_of_stable_diffusion_is_opened_as_a_whole(hub: HubServer, tmp_path: Path) -> None:
    """All components by their headers, although an all-in-one file lies beside them; a download has the tokenizer."""
    tensors = save_pipeline(PIPELINES["sd15"], tmp_path / "repo", 1)
    save_file({"x": torch.zeros(3)}, tmp_path / "repo" / "v1-5.safetensors")
    hub.add("org/sd", tmp_path / "repo")
    found = open_reference("org/sd", download=False)
    assert found.tensors.keys() == tensors.keys()
    assert {file.path.rpartition(":")[2].split("/")[0] for file in found.files} == {"unet", "text_encoder", "vae"}
    assert found.parts["vae"]["_class_name"] == "AutoencoderKL"
    here = open_reference("org/sd", download=True)
    assert here.folder is not None
    assert (Path(here.folder) / "tokenizer" / "merges.txt").is_file()
    assert not (Path(here.folder) / "v1-5.safetensors").exists()
    assert {key: (view.shape, view.dtypes) for key, view in here.tensors.items()} == {
        key: (tuple(tensor.shape), {"BF16"}) for key, tensor in tensors.items()
    }

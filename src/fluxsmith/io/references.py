"""Opening a checkpoint by its reference: a path, `pocket/NAME`, or `org/name[@revision][:path]` on the Hub."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from fluxsmith.errors import FileError
from fluxsmith.hub import HubFolder, HubReference, open_repository, parse_reference
from fluxsmith.io.checkpoint import ADAPTER_CONFIG, ADAPTER_STEMS, PICKLES, STEMS, Checkpoint, LocalFolder, WeightFile, read_json
from fluxsmith.io.gguf import gguf_checkpoint
from fluxsmith.io.header import Header, parse_header
from fluxsmith.io.opening import join_parts, open_checkpoint, open_folder, pipeline_parts

__all__ = ["open_reference"]

# The header of a FLUX.1 shard has about 60 KB, that of a single file about 130 KB: mostly one request is enough.
FIRST_READ = 256 * 1024

# Files of a pipeline that belong to the model without being weights.
_SMALL = (".json", ".txt", ".model", ".jinja")
_LARGEST_SMALL = 16 << 20


def open_reference(reference: str, *, download: bool, allow_pickle: bool = False) -> Checkpoint:
    """A checkpoint by its headers, wherever it lies.

    Of one on the Hub only headers are fetched; with `download`, then also the files that hold it, into the cache of
    huggingface_hub, and what is opened are these.
    Raises FileError (exit code 3) where the file or folder is not a checkpoint, HubError (6) where the Hub does not
    give it, ResourceError (5) where a download finds the disk full.
    """
    place = parse_reference(reference)
    if not isinstance(place, HubReference):
        return open_checkpoint(place, reference, allow_pickle=allow_pickle)
    repository = open_repository(place)
    parts = _pipeline(repository, place)
    if parts is not None:
        return _open_pipeline(*parts, reference, download=download)
    folder, file = _choose_weights(repository, place)
    if file is not None and allow_pickle and file.endswith(PICKLES):
        return _open_pickle(folder, file, reference, download)
    if file is not None and file.lower().endswith(".gguf"):
        if download:
            return open_checkpoint(folder.download([file]) / file, reference)
        return gguf_checkpoint(_read_ahead(folder, file), _weight_file(folder, file), reference)
    remote = _RemoteFolder(folder, file)
    checkpoint = open_folder(remote, reference)
    if not download:
        return checkpoint
    root = folder.download(remote.read)
    return open_folder(LocalFolder(root), reference) if file is None else open_checkpoint(root / file, reference)


def _pipeline(repository: HubFolder, reference: HubReference) -> tuple[HubFolder, list[str]] | None:
    """The folder and component folders of a pipeline that is opened as a whole; None for anything else."""
    path = reference.path or ""
    if path in repository.files:
        return None
    folder = repository.folder(path)
    if not any(name.startswith(("unet/", "text_encoder_3/")) for name in folder.files):
        return None  # no Stable Diffusion: one request less
    index = "model_index.json"
    kind = str(read_json(_RemoteFolder(folder, None), index).get("_class_name", "")) if index in folder.files else None
    parts = pipeline_parts(folder.files, kind)
    return (folder, parts) if parts else None


def _open_pipeline(folder: HubFolder, parts: Sequence[str], reference: str, *, download: bool) -> Checkpoint:
    """Every component of a pipeline; a download brings its tokenizers and other small files, too."""
    remotes = {part: _RemoteFolder(folder.folder(part), None) for part in parts}
    opened = {part: open_folder(remote, reference) for part, remote in remotes.items()}
    if not download:
        return join_parts(reference, opened, None)
    weights = [f"{part}/{name}" for part, remote in remotes.items() for name in remote.read]
    small = [name for name, file in folder.files.items() if name.endswith(_SMALL) and file.size <= _LARGEST_SMALL]
    root = folder.download(list(dict.fromkeys([*weights, *small])))
    return join_parts(reference, {part: open_folder(LocalFolder(root / part), reference) for part in parts}, str(root))


def _open_pickle(folder: HubFolder, file: str, reference: str, download: bool) -> Checkpoint:
    if not download:
        raise FileError(
            "file.pickle",
            f"{file} of {folder.name} is a pickle: what is in it can be told only after the download",
            facts={"file": folder.path(file), "size": f"{folder.files[file].size:,} bytes"},
            fix=HubReference(folder.repo, folder.revision, folder.path(file)).download_command,
        )
    return open_checkpoint(folder.download([file]) / file, reference, allow_pickle=True)


def _choose_weights(repository: HubFolder, reference: HubReference) -> tuple[HubFolder, str | None]:
    """The folder that holds the wanted weights, and the file in it where the reference names one.

    Raises HubError where the named path is missing, FileError where there are no weights or several to choose from.
    """
    path = reference.path or ""
    if path in repository.files:
        parent, _, file = path.rpartition("/")
        return repository.folder(parent), file
    folder = repository.folder(path)
    if any(name.startswith("transformer/") and name.endswith(".safetensors") for name in folder.files):
        return folder.folder("transformer"), None
    weights = [name for name in folder.names() if name.endswith(".safetensors")]
    if not weights or "model_index.json" in folder.files:
        raise _no_weights(folder, reference)
    if len(weights) > 1 and not _is_one_checkpoint(folder.names()):
        raise FileError(
            "hub.ambiguous",
            f"{folder.name} holds {len(weights)} checkpoints side by side",
            facts={"found": "\n".join(f"{name}  {folder.files[name].size:,} bytes" for name in weights)},
            fix="name one, as in " + str(HubReference(reference.repo, reference.revision, folder.path(weights[0]))),
        )
    return folder, None


def _is_one_checkpoint(names: list[str]) -> bool:
    """Whether `open_folder` knows which of several weight files to take, or can say why they are incomplete."""
    return any(".safetensors.index" in name or "-of-" in name for name in names) or any(
        f"{stem}.safetensors" in names for stem in (*STEMS, *ADAPTER_STEMS)
    )


def _no_weights(folder: HubFolder, reference: HubReference) -> FileError:
    below = sorted({str(PurePosixPath(name).parent) for name in folder.files if name.endswith(".safetensors")} - {"."})
    kind = "is a pipeline without safetensors in transformer/" if "model_index.json" in folder.files else "holds no safetensors file"
    example = HubReference(reference.repo, reference.revision, folder.path(below[0])) if below else None
    return FileError(
        "hub.no-weights",
        f"{folder.name} {kind}",
        facts={"weights in": ", ".join(below)} if below else {"found": ", ".join(folder.names()[:20]) or "nothing"},
        fix=f"name a folder or file, as in {example}" if example else None,
    )


class _RemoteFolder:
    """A folder on the Hub as `open_folder` wants it, or one file of it as if it were alone there.

    `read` remembers what was opened: exactly the files that a download needs.
    """

    def __init__(self, folder: HubFolder, file: str | None) -> None:
        self.name = folder.name
        self.read: list[str] = []
        self._folder = folder
        self._file = file

    def names(self) -> list[str]:
        if self._file is None:
            return self._folder.names()
        # under a name that is always taken for weights, so that a named file is tried whatever its suffix
        stem, beside = PurePosixPath(self._file).stem, self._folder.files
        configs = (("config.json", STEMS), (ADAPTER_CONFIG, ADAPTER_STEMS[:1]))
        return [f"{STEMS[0]}.safetensors", *(name for name, stems in configs if stem in stems and name in beside)]

    def text(self, name: str) -> str:
        self.read.append(name)
        return self._folder.text(name)

    def header(self, name: str) -> tuple[WeightFile, Header]:
        name = self._file or name
        self.read.append(name)
        file = _weight_file(self._folder, name)
        return file, parse_header(_read_ahead(self._folder, name), file.size, file.path)


def _weight_file(folder: HubFolder, name: str) -> WeightFile:
    """A file on the Hub, at the commit at which it was looked at."""
    file = folder.files[name]
    place = str(HubReference(folder.repo, folder.commit, folder.path(name)))
    address = f"hf://{folder.repo}@{quote(folder.revision, safe='')}/{quote(folder.path(name))}#{folder.commit}"
    return WeightFile(place, file.size, file.etag, remote=address)


def _read_ahead(folder: HubFolder, name: str) -> Callable[[int, int], bytes]:
    """Reads of a file's head, of which the first fetches more than it was asked for, and the others what is missing."""
    head = b""

    def read(offset: int, length: int) -> bytes:
        nonlocal head
        missing = offset + length - len(head)
        if missing > 0:
            head += folder.read(name, len(head), missing if head else max(missing, FIRST_READ))
        return head[offset : offset + length]

    return read

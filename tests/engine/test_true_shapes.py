"""Files of the published models' true shapes, sparse: headers are real, data are holes that take no disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fluxsmith as fs
from fluxsmith.io.header import encode_header
from fluxsmith.io.shards import place
from fluxsmith.layouts import FLUX1
from fluxsmith.layouts.emission import emit

DIMS = {"H": 3072, "M": 12288, "D": 128, "T": 256, "ctx": 4096, "vec": 768, "in": 64, "out": 64, "double": 19, "single": 38}


def make_sparse(target: Path, layout: str, *, guidance: int) -> Path:
    """A checkpoint of FLUX.1's true shape in the Hub's exact file layout, all zeros, as sparse files."""
    emitted = emit(FLUX1.expand({**DIMS, "guidance": guidance}), layout, FLUX1)
    shard = 10_000_000_000 if layout == "diffusers" else None
    stem = "diffusion_pytorch_model" if layout == "diffusers" else target.stem
    files = place([(t.name, "BF16", t.shape) for t in emitted], stem=stem, shard_size=shard, metadata={"format": "pt"})
    folder = target if layout == "diffusers" else target.parent
    folder.mkdir(exist_ok=True)
    for file in files:
        with (folder / file.name).open("wb") as stream:
            stream.write(encode_header(file.tensors, {"format": "pt"}))
            stream.truncate(file.size)
    if len(files) > 1:
        weight_map = {key: file.name for file in files for key in file.tensors}
        index = {"metadata": {"total_size": sum(f.data_bytes for f in files)}, "weight_map": weight_map}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return target


@pytest.fixture(scope="module")
def giants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("giants")
    return {
        "schnell": make_sparse(root / "schnell", "diffusers", guidance=0),
        "dev": make_sparse(root / "dev", "diffusers", guidance=1),
        "bfl": make_sparse(root / "flux1-dev.safetensors", "bfl", guidance=1),
    }


def test_plan_of_two_giants(giants: dict[str, Path]) -> None:
    schnell, krea = fs.model(str(giants["schnell"]), name="schnell"), fs.model(str(giants["bfl"]), name="krea")
    begin = time.monotonic()
    plan = fs.plan(fs.weighted_sum(schnell, krea), guidance="from(schnell)", layout="diffusers", shard_size="10GB", output="out")
    seconds = time.monotonic() - begin
    assert [i.tensors for i in plan.inputs] == [1156, 780]
    assert [i.nbytes for i in plan.inputs] == [23_782_357_120, 23_802_816_640]
    assert sum(file.data_bytes for file in plan.files) == 23_782_357_120
    assert [len(file.tensors) for file in plan.files] == [484, 476, 196]
    assert plan.inputs[1].outcome == {"merged": 776, "dropped (guidance: from(schnell))": 4}
    assert sum(target.count for job in plan.jobs for target in job.targets) * 2 == 23_782_357_120
    assert seconds < 20  # the number to hold is in docs/benchmarks.md; this only sees that no weights are read


def test_every_output_byte_is_written_once(giants: dict[str, Path]) -> None:
    wish = fs.weighted_sum(fs.model(str(giants["dev"]), name="a"), fs.model(str(giants["bfl"]), name="b"))
    for layout in ("bfl", "diffusers", "comfy"):
        plan = fs.plan(wish, layout=layout)
        spans = sorted((t.file, t.offset, t.offset + 2 * t.count) for job in plan.jobs for t in job.targets)
        at = {number: 0 for number in range(len(plan.files))}
        for file, start, stop in spans:
            assert start == at[file]
            at[file] = stop
        assert [at[i] for i in at] == [file.data_bytes for file in plan.files]


def test_planning_does_not_import_torch(giants: dict[str, Path]) -> None:
    code = (
        "import sys; from fluxsmith.cli.main import main\n"
        f"try: main(['plan', '0.5*a + 0.5*b', '-m', 'a={giants['dev']}', '-m', 'b={giants['bfl']}'])\n"
        "except SystemExit as e: assert not e.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert run.returncode == 0, run.stderr
    assert "780 merged" in run.stdout

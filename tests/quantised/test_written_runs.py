"""Runs that quantise: same bytes for any threads and after an interruption, fresh scales, errors as measured by hand."""

import json
import re
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.api import as_recipe
from fluxsmith.engine import memory
from fluxsmith.engine.execution import Execution
from fluxsmith.engine.merging import Merged, merge
from fluxsmith.engine.plan import Job, Plan
from fluxsmith.engine.streaming import Settings
from fluxsmith.errors import Interrupted, UsageError
from fluxsmith.io.schemes import OUTPUT_TYPES, SCHEMES
from fluxsmith.io.writer import partial_path
from fluxsmith.recipes.schema import OutputEntry
from support.cli_runs import run_cli
from support.folder_pictures import picture
from support.tiny_flux import tensors_of
from support.wide_flux import Wide

QKV = "double_blocks.0.img_attn.qkv.weight"


class Stopper:
    """Stops a run after so many tiles."""

    def __init__(self, tiles: int) -> None:
        self.tiles = tiles

    def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None:
        self.execution = execution

    def advanced(self, count: int, job: Job) -> None:
        self.tiles -= 1
        if self.tiles == 0:
            self.execution.stop()


def target(root: Path, scheme: str) -> Path:
    """An output that can hold a scheme."""
    return root / {"safetensors": f"{scheme}.safetensors", "gguf": f"{scheme}.gguf", "diffusers": scheme}[SCHEMES[scheme].container]


def quantise(source: Path, root: Path, scheme: str, **options: object) -> Merged:
    return fs.merge(str(source), target(root, scheme), dtype=scheme, **options)  # pyright: ignore[reportArgumentType]


def data(path: Path) -> list[bytes]:
    """An output's files, whole."""
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def values(path: Path, root: Path) -> dict[str, Tensor]:
    """The weights that are read back, in float32, by BFL names."""
    fs.merge(str(path), root / "values.safetensors", dtype="fp32", layout="bfl", force=True)
    return tensors_of(root / "values.safetensors")


@pytest.mark.parametrize("scheme", ["fp8_scaled", "fp8_block", "fp8_channel", "int8_torchao", "q8_0", "q4_0"])
def test_same_bytes_for_any_threads_and_tiles(scheme: str, wide: Wide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantise(wide.folder, tmp_path, scheme, threads=1)
    first = data(target(tmp_path, scheme))
    monkeypatch.setattr(memory, "TILE", 1 << 10)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 8)
    for threads in (1, 3):
        run = quantise(wide.folder, tmp_path, scheme, threads=threads, force=True)
        assert data(target(tmp_path, scheme)) == first
        assert run.outcome.errors.total == pytest.approx(whole.outcome.errors.total, rel=1e-6)
    errors = [quantise(wide.folder, tmp_path, scheme, threads=n, force=True).outcome.errors.tensors for n in (1, 4)]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("scheme", ["fp8_scaled", "fp8_comfy", "int8_torchao", "q8_0"])
def test_resumed_runs_give_the_same_bytes(scheme: str, wide: Wide, tmp_path: Path) -> None:
    """Stopped after thirty tiles, then gone on with."""
    out = target(tmp_path, scheme)
    a, b = (fs.model(str(file), name=name) for file, name in ((wide.file, "a"), (wide.other, "b")))
    recipe = as_recipe(fs.weighted_sum(a, b, alpha=0.7), dtype=scheme)
    whole = merge(recipe, out)
    undisturbed = data(out)
    with pytest.raises(Interrupted):
        merge(recipe, out, force=True, settings=Settings(threads=1), observer=Stopper(30))
    done = {job for line in (partial_path(out) / "journal").read_text().splitlines()[1:] for job in json.loads(line)}
    assert 0 < len(done) < 92
    rest = merge(recipe, out, force=True, resume=True)
    assert data(out) == undisturbed
    known = {name for i, job in enumerate(rest.plan.jobs) if i not in done and (name := job.tensor) in whole.outcome.errors.tensors}
    assert set(rest.outcome.errors.tensors) == known  # of what this run wrote
    assert 0 < len(known) < 29


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_what_is_quantised_once_stays_as_it_is(scheme: str, wide: Wide, tmp_path: Path) -> None:
    """Read, and written again in the same scheme, which is what happens without --dtype."""
    (tmp_path / "again").mkdir()
    quantise(wide.file, tmp_path, scheme)
    run = fs.merge(str(target(tmp_path, scheme)), target(tmp_path / "again", scheme))
    assert run.plan.scheme == scheme
    once, twice = values(target(tmp_path, scheme), tmp_path), values(target(tmp_path / "again", scheme), tmp_path)
    # The largest number of a type is a scale's multiple again; where that is rounded (127.5 has no int8; bf16 scales,
    # float16 ones) a scale may move by its last place, and with it all of its weights.
    limit = {"int8_torchao": 0.004, "q4_0": 0.0}.get(scheme, 0.004 if "bf16" in scheme else 1e-6)
    assert run.outcome.errors.total <= limit
    for name in once:
        assert (twice[name] - once[name]).norm() <= limit * once[name].norm(), name


def test_merging_scaled_files_uses_their_values_and_fresh_scales(wide: Wide, tmp_path: Path) -> None:
    quantise(wide.file, tmp_path, "fp8_scaled")
    fs.merge(str(wide.other), tmp_path / "b8.safetensors", dtype="fp8_scaled")
    a, b = values(target(tmp_path, "fp8_scaled"), tmp_path), values(tmp_path / "b8.safetensors", tmp_path)
    out = tmp_path / "out.safetensors"
    wish = fs.weighted_sum(fs.model(str(target(tmp_path, "fp8_scaled")), name="a"), fs.model(str(tmp_path / "b8.safetensors"), name="b"))
    run = fs.merge(wish, out)
    assert run.plan.scheme == "fp8_scaled"
    expected = (a[QKV] + b[QKV]) / 2
    found = tensors_of(out)
    scale = found[QKV.removesuffix("weight") + "scale_weight"]
    assert float(scale) == pytest.approx(float(expected.abs().max()) / 448, rel=1e-6)
    assert torch.equal(found[QKV].view(torch.uint8), (expected / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8))
    plain = fs.merge(wish, tmp_path / "plain.safetensors", dtype="bf16")
    assert plain.plan.scheme == ""
    assert torch.equal(tensors_of(tmp_path / "plain.safetensors")[QKV], expected.bfloat16())


def test_schemes_that_the_output_cannot_hold_give_bf16_and_say_so(wide: Wide, tmp_path: Path) -> None:
    quantise(wide.file, tmp_path, "q8_0")
    run = fs.merge(str(target(tmp_path, "q8_0")), tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out.safetensors").values() if tensor.ndim == 2} == {torch.bfloat16}
    assert [note for note in run.plan.notes if "the first input is stored as GGUF (flux), the result is not quantised" in note]
    state = fs.load_state_dict(str(target(tmp_path, "q8_0")))  # in memory there is nothing to keep
    assert state[QKV].dtype == torch.bfloat16


def test_another_layout_than_the_scheme_has_gives_bf16(wide: Wide, tmp_path: Path) -> None:
    quantise(wide.file, tmp_path, "int8_torchao")
    run = fs.merge(str(target(tmp_path, "int8_torchao")), tmp_path / "bfl", layout="bfl")
    assert (run.plan.scheme, run.plan.layout, len(run.plan.notes)) == ("", "bfl", 1)


def test_what_is_to_stay_unquantised_says_that_the_rest_is(wide: Wide, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`double\.0` is to stay unquantised"):
        fs.merge(str(wide.file), tmp_path / "out.safetensors", dtype="bf16", unquantised=["double.0"])


def by_hand(scheme: str, weight: Tensor) -> float:
    """||W' - W|| / ||W|| of one tensor by the formulas of the schemes."""
    w = weight.float()
    if scheme in ("q8_0", "q4_0"):
        kind = GGMLQuantizationType[scheme.upper()]
        stored = torch.from_numpy(dequantize(quantize(w.numpy(), kind), kind))
    elif scheme == "fp8_e4m3":
        stored = w.to(torch.float8_e4m3fn).float()
    elif scheme == "int8_torchao":
        scale = w.abs().amax(1, keepdim=True) / 127.5
        stored = (w / scale).round().clamp(-128, 127) * scale
    else:
        scale = (w.abs().view(-1, 64).amax(1, keepdim=True) / 448).bfloat16().float() if scheme == "fp8_block" else w.abs().max() / 448
        stored = ((w.view(len(scale), -1) if scale.ndim else w) / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    return float((stored.view_as(w) - w).double().norm() / w.double().norm())


@pytest.mark.parametrize("scheme", ["fp8_e4m3", "fp8_scaled", "fp8_block", "int8_torchao", "q8_0", "q4_0"])
def test_errors_are_those_computed_by_hand(scheme: str, wide: Wide, tmp_path: Path) -> None:
    out = target(tmp_path, scheme) if scheme in SCHEMES else tmp_path / "naive.safetensors"
    errors = fs.merge(str(wide.file), out, dtype=scheme).outcome.errors
    # In the diffusers layout rows are stored apart, but every row has its own scale.
    expected = {name: by_hand(scheme, weight) for name, weight in wide.tensors.items() if name in errors.tensors}
    assert len(expected) == (92 if scheme == "fp8_e4m3" else 29)
    assert errors.tensors == pytest.approx(expected, rel=1e-4)
    assert list(errors.tensors.values()) == sorted(errors.tensors.values(), reverse=True)
    for block, error in errors.by_block.items():
        stem = block.replace("double.", "double_blocks.").replace("single.", "single_blocks.")
        members = [name for name in expected if name.startswith(f"{stem}.")]
        sizes = [float(wide.tensors[name].double().norm()) for name in members]
        lost = sum((expected[name] * size) ** 2 for name, size in zip(members, sizes, strict=True))
        assert error == pytest.approx((lost / sum(size**2 for size in sizes)) ** 0.5, rel=1e-4), block
    assert {"double.0", "single.2"} <= set(errors.by_block)


def test_a_scale_saves_a_fifth_of_the_error_on_small_random_weights(wide: Wide, tmp_path: Path) -> None:
    """e4m3 with a scale is about 2.7 % off, naive e4m3 about 3.4 %, as its steps do not shrink below 2^-9."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(t.shape, generator=random) * 0.02).bfloat16() for name, t in wide.tensors.items()}
    save_file(tensors, tmp_path / "in.safetensors", {"format": "pt"})
    totals = {
        dtype: fs.merge(str(tmp_path / "in.safetensors"), tmp_path / dtype / "x.safetensors", dtype=dtype)
        for dtype in ("fp8_e4m3", "fp8_scaled")
    }
    assert totals["fp8_scaled"].outcome.errors.total == pytest.approx(0.0265, abs=0.001)
    assert totals["fp8_e4m3"].outcome.errors.total == pytest.approx(0.034, abs=0.002)


def test_nothing_is_said_of_errors_where_nothing_is_quantised(wide: Wide, tmp_path: Path) -> None:
    run = run_cli("convert", wide.file, "-o", tmp_path / "out.safetensors", "--dtype", "fp16", "--json")
    assert json.loads(run.out)["quantisation"] is None
    copied = run_cli("convert", wide.file, "-o", tmp_path / "fp8.safetensors", "--dtype", "fp8_e4m3")
    assert "92 tensors as fp8_e4m3" in copied.out
    again = run_cli("convert", tmp_path / "fp8.safetensors", "-o", tmp_path / "again.safetensors")  # copied, not rounded
    assert "relative error" not in again.out


def test_the_command_shows_the_errors(wide: Wide, tmp_path: Path) -> None:
    run = run_cli("convert", wide.file, "-o", tmp_path / "out.gguf", "--dtype", "q8_0")
    assert "quantised  29 tensors as q8_0, relative error 0.5" in run.out
    assert run.out.count("_blocks.") == 5
    merged = run_cli("merge", "0.5*a + 0.5*b", "-m", f"a={wide.file}", "-m", f"b={wide.other}", "-o", tmp_path / "m.safetensors", "--dtype",
                     "fp8_scaled", "--json", "--unquantised", "single")  # fmt: skip
    facts = json.loads(merged.out)["quantisation"]
    assert facts["scheme"] == "fp8_scaled"
    assert list(facts["blocks"]) == ["double.0", "double.1"]
    assert facts["relative_error"] == pytest.approx(0.026, abs=0.002)
    assert "What quantising cost" in (tmp_path / "m.report.html").read_text()


def test_a_plan_names_the_scheme(wide: Wide, tmp_path: Path) -> None:
    command = ["plan", "a", "-m", f"a={wide.file}", "-o", tmp_path / "out.safetensors", "--dtype", "fp8_block"]
    assert "F8_E4M3 (fp8_block)" in run_cli(*command).out
    facts = json.loads(run_cli(*command, "--json").out)
    assert (facts["output"]["scheme"], facts["output"]["quantised"]) == ("fp8_block", 29)
    run = quantise(wide.file, tmp_path, "fp8_block")
    assert target(tmp_path, "fp8_block").stat().st_size == pytest.approx(facts["output"]["bytes"], rel=0.01)
    assert run.plan.needs.disk == target(tmp_path, "fp8_block").stat().st_size


def test_a_refused_output_changes_nothing(wide: Wide, tmp_path: Path) -> None:
    before = picture(tmp_path)
    run = run_cli("convert", wide.file, "-o", tmp_path / "out.safetensors", "--dtype", "q4_0")
    assert (run.code, picture(tmp_path)) == (2, before)
    assert "error[usage.only-in-gguf]" in run.err


@pytest.mark.parametrize("scheme", ["fp8_block", "int8_torchao", "q8_0"])
def test_recipes_are_saved_and_reproduced_with_their_scheme(scheme: str, wide: Wide, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    quantise(wide.file, tmp_path, scheme, unquantised=["double.0"])
    run = run_cli("reproduce", target(tmp_path, scheme), "-o", target(tmp_path / "again", scheme))
    assert run.code == 0, run.err
    assert data(target(tmp_path / "again", scheme)) == data(target(tmp_path, scheme))


def test_the_page_names_every_type_and_its_error_on_the_pocket_model(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantised.md").read_text().partition("## Writing")[2]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6]
    named = [re.findall(r"`(\w+)`", row[1]) for row in rows]
    assert set(OUTPUT_TYPES) <= {name for names in named for name in names}
    for names, row in zip(named, rows, strict=True):
        for name, said in zip(names, re.findall(r"([\d.]+) %", row[5]), strict=False):
            out = target(tmp_path, name) if name in SCHEMES else tmp_path / "plain.safetensors"
            assert f"{fs.merge('pocket/base', out, dtype=name, force=True).outcome.errors.total:.2%}" == f"{said}%", name


def test_recipe_files_and_flags_name_the_same_types() -> None:
    words = OutputEntry.model_json_schema()["properties"]["dtype"]["anyOf"][0]["enum"]
    assert tuple(words) == OUTPUT_TYPES

"""The page beside a merge says what is in the file, and how far it is from its inputs."""

import json
import re
from pathlib import Path

import pytest

from support.cli_runs import run_cli
from support.tiny_flux import TinyCheckpoints, tensors_of


def test_distances_are_those_of_the_files(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run = run_cli("merge", "0.75*a + 0.25*b", "-m", f"a={tiny.a}", "-m", f"b={tiny.b}", "-o", str(out), "--dtype", "fp32")
    assert run.code == 0
    assert f"report {tmp_path / 'out.report.html'}" in run.out
    page = (tmp_path / "out.report.html").read_text()
    shown = dict(re.findall(r"<title>(double\.1): ([\d.]+)% b</title>", page))
    merged, b = tensors_of(out), tensors_of(tiny.b)
    keys = [key for key in merged if key.startswith("double_blocks.1.")]
    moved = sum(float((merged[key] - b[key].float()).square().sum()) for key in keys)
    size = sum(float(b[key].float().square().sum()) for key in keys)
    assert float(shown["double.1"]) == pytest.approx(100 * (moved / size) ** 0.5, abs=0.01)
    assert "0.75*a + 0.25*b" in page
    assert "http" not in page  # nothing from elsewhere


def test_the_report_of_a_folder_lies_in_it_and_can_be_left_out(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    words = ["merge", "0.5*a + 0.5*b", "-m", f"a={tiny.a}", "-m", f"b={tiny.b}"]
    assert run_cli(*words, "-o", str(tmp_path / "folder"), "--layout", "diffusers").code == 0
    assert (tmp_path / "folder" / "report.html").is_file()
    assert run_cli(*words, "-o", str(tmp_path / "plain.safetensors"), "--no-report").code == 0
    assert not (tmp_path / "plain.report.html").exists()


def test_names_in_the_report_are_text(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"fluxsmith: 1\ntitle: <script>alert(1)</script>\nmodels: {{a: '{tiny.a}', b: '{tiny.b}'}}\nmerge: 0.5*a + 0.5*b\n")
    assert run_cli("merge", str(recipe), "-o", str(tmp_path / "out.safetensors")).code == 0
    page = (tmp_path / "out.report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_comparison_as_a_page(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    run = run_cli("diff", str(tiny.a), str(tiny.b), "--html", str(page), "--json")
    assert run.code == 0
    change = next(block["relative"] for block in json.loads(run.out)["blocks"] if block["block"] == "single.1")
    assert f"<title>single.1: {change:.2%} change</title>" in page.read_text()
    assert run_cli("diff", str(tiny.a), str(tiny.a), "--html", str(page)).code == 0
    assert "Identical" in page.read_text()
    missing = run_cli("diff", str(tiny.a), str(tiny.b), "--html", str(tmp_path / "no" / "folder.html"))
    assert (missing.code, "error[usage.no-page]" in missing.err) == (2, True)

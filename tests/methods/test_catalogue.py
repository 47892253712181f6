"""What is said of the methods is what they declare, and the page of them is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fluxsmith.methods import METHODS
from fluxsmith.methods.catalogue import as_data, detail, option_text, page, passes, signature, unit
from support.cli_runs import run_cli

ROOT = Path(__file__).parent.parent.parent
OURS = [name for name, method in METHODS.items() if method.function.__module__.startswith("fluxsmith.")]


def test_the_page_is_up_to_date() -> None:
    """Where this fails: python -m fluxsmith.methods.catalogue > docs/methods.md"""
    made = subprocess.run([sys.executable, "-m", "fluxsmith.methods.catalogue"], check=True, capture_output=True, text=True).stdout
    assert (ROOT / "docs" / "methods.md").read_text() == made
    assert page(METHODS[name] for name in OURS) == made


def test_signatures_units_and_passes() -> None:
    assert signature(METHODS["ties"]) == "ties(base: weight, *models: weight) -> weight"
    assert signature(METHODS["add_opposite_mask"]).endswith("-> param")
    units = {name: unit(METHODS[name]) for name in ("linear", "della", "crossover")}
    assert units == {"linear": "tile", "della": "rows", "crossover": "whole"}
    counted = {name: passes(METHODS[name]) for name in ("linear", "ties", "breadcrumbs", "sce", "model_stock", "della", "nuslerp")}
    assert counted == {
        "linear": (1, 1), "ties": (2, 2), "breadcrumbs": (2, 2), "sce": (4, 4), "model_stock": (1, 2), "della": (1, 3), "nuslerp": (1, 2),
    }  # fmt: skip


def test_options() -> None:
    options = METHODS["della"].options
    assert option_text(options["density"]) == "density = 0.5, from 0 to 1, one or one per input"
    assert option_text(options["weights"]) == "weights, one per input (default: all 1)"
    assert option_text(options["over"]) == "over: rows | tensor = rows"
    assert option_text(options["normalize"]) == "normalize: true | false = true"
    assert option_text(METHODS["weighted_sum"].options["alpha"]) == "alpha = 0.5, a number or a tensor of numbers"
    assert "(required)" in option_text(METHODS["bake_guidance"].options["guidance"])


@pytest.mark.parametrize("name", OURS)
def test_every_method_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert 10 < len(method.summary) < 160
    text = detail(method)
    assert all(option in text for option in method.options)
    assert json.loads(json.dumps(as_data(method)))["returns"] == method.returns


def test_the_list_has_them_all() -> None:
    shown = run_cli("list", "methods")
    assert shown.code == 0
    lines = [line.split()[0] for line in shown.out.splitlines()[1:]]
    assert lines == sorted(METHODS)
    data = json.loads(run_cli("list", "methods", "--json").out)
    assert data["ties"]["unit"] == "tile"
    assert data["dare_ties"]["random"] is True
    one = run_cli("list", "methods", "sce")
    assert "arXiv 2408.07990" in one.out
    assert run_cli("list", "methods", "sec").code == 2

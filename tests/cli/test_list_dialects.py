"""`fluxsmith list dialects`: every dialect, from the registry."""

import json

from fluxsmith.adapters.dialects import DIALECTS
from support.cli_runs import run_cli


def test_every_dialect_is_listed() -> None:
    run = run_cli("list", "dialects")
    assert run.code == 0
    lines = run.out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(DIALECTS)
    assert all(dialect.title in line for dialect, line in zip(DIALECTS.values(), lines, strict=True))


def test_one_dialect_and_json() -> None:
    text = run_cli("list", "dialects", "onetrainer").out
    assert "lora_transformer_" in text and "joined by _" in text
    data = json.loads(run_cli("list", "dialects", "--json").out)
    assert list(data) == list(DIALECTS)
    assert data["kohya-oft"]["families"] == ["flux1"]


def test_a_name_that_there_is_not() -> None:
    run = run_cli("list", "dialects", "kohia")
    assert run.code == 2
    assert "did you mean `kohya`" in run.err

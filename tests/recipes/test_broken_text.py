"""Recipe files of every format with a few characters changed: they are read, or refused by one error of ours."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fluxsmith as fs

FOLDER = Path(__file__).parent.parent.parent / "recipes"
TEXTS = {name: (FOLDER / name).read_text() for name in ("03_ties_per_block.yaml", "12_sd_mecha.mecha", "13_mergekit.yaml")}
PIECES = st.sampled_from(
    ["", " ", "\n", "0", "-1", ".nan", "1e999", "&9", '"', "'", "=", ":", "- ", "{", "]", "null", "true", "x", "é", "model", "weight"]
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(PIECES) + text[start + draw(st.integers(0, 12)) :]
    return text


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_text_is_one_error_at_most(name: str, data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(data.draw(damaged(TEXTS[name])))
    try:
        fs.recipes.load(file)
    except fs.FluxsmithError as error:
        assert error.code and error.exit_code in (2, 4), error

"""docs/adapters.md: its table is that of the registry, and it tells what the commands do."""

import re
import shlex
from pathlib import Path

from fluxsmith.adapters.dialects.overview import markdown
from support.cli_runs import run_cli

PAGE = (Path(__file__).parent.parent.parent / "docs" / "adapters.md").read_text()


def test_the_table_of_dialects_is_the_registrys() -> None:
    found = re.search(r"<!-- dialects: .*?-->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    assert found is not None
    assert found[1] == markdown(), "write the table again: fluxsmith.adapters.dialects.overview.markdown()"


def test_options_on_the_page_are_those_of_the_commands() -> None:
    lines = [line for line in PAGE.split("\n") if line.startswith("fluxsmith ")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)[1:]
        command = words[:2] if words[0] == "adapter" else words[:1]
        shown = run_cli(*command, "--help").out
        assert all(re.search(rf"{word}\b", shown) for word in words if word.startswith("-"))

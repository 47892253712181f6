"""A yard for every test: inputs that may be broken, an older output that may not be touched."""

from pathlib import Path

import pytest

from bad_input.cases import Yard
from support.tiny_flux import TinyCheckpoints


@pytest.fixture
def yard(tiny: TinyCheckpoints, tmp_path: Path) -> Yard:
    place = Yard(tmp_path, tiny)
    place.prepare()
    return place

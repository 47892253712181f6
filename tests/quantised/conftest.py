"""What the tests of quantised files share."""

import pytest

from support.wide_flux import Wide, make_wide


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Wide:
    """Two models of width 64, to be read only."""
    return make_wide(tmp_path_factory.mktemp("wide"))

"""What every test has: a cache folder of its own, and tiny checkpoints made once per session."""

from collections.abc import Iterator

import pytest

from support.tiny_flux import TinyCheckpoints, save_all


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remembered hashes go to a folder of this session; nothing of the user's settings changes a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("SOURCE_DATE_EPOCH", "FLUXSMITH_DEBUG"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """Tiny FLUX.1 checkpoints in every layout, to be read only."""
    return save_all(tmp_path_factory.mktemp("tiny"))

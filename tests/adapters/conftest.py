"""The tiny FLUX.1 model as the base of adapters."""

import pytest
from torch import Tensor

from fluxsmith.io.opening import open_checkpoint
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.tiny_flux import TinyCheckpoints, tensors_of


@pytest.fixture(scope="session")
def base(tiny: TinyCheckpoints) -> Bound:
    """The tiny FLUX.1 model, opened."""
    return open_model(open_checkpoint(tiny.a), known_tables())


@pytest.fixture(scope="session")
def weights(tiny: TinyCheckpoints) -> dict[str, Tensor]:
    """Its tensors, under Black Forest Labs' names."""
    return tensors_of(tiny.a)

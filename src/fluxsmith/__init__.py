"""fluxsmith: a workshop for the weights of FLUX-like image models.

    import fluxsmith as fs

    schnell = fs.model("black-forest-labs/FLUX.1-schnell")
    krea = fs.model("black-forest-labs/FLUX.1-Krea-dev")
    fs.merge(fs.weighted_sum(schnell, krea, alpha=0.5), output="merged", guidance="drop")

Every merge method (`fluxsmith list methods`) is a function of this module; importing it imports no torch.
"""

from typing import TYPE_CHECKING, Any

from fluxsmith import recipes
from fluxsmith.api import bundle, load, load_recipe, load_state_dict, merge, plan, split
from fluxsmith.errors import FluxsmithError
from fluxsmith.methods.base import (
    Between,
    Delta,
    Each,
    EachShare,
    Masks,
    Measured,
    Param,
    PerInput,
    PerInputParam,
    Same,
    Share,
    Weight,
    merge_method,
)
from fluxsmith.recipes.expressions import adapter, component, literal, model, omit, state_dict
from fluxsmith.recipes.lines import lines
from fluxsmith.version import VERSION

if TYPE_CHECKING:
    from fluxsmith.methods import Method

__version__ = VERSION

__all__ = [
    "Between", "Delta", "Each", "EachShare", "FluxsmithError", "Masks", "Measured", "Param", "PerInput", "PerInputParam", "Same", "Share",
    "Weight", "__version__", "adapter", "bundle", "component", "lines", "literal", "load", "load_recipe", "load_state_dict", "merge",
    "merge_method", "model", "omit", "plan", "recipes", "split", "state_dict",
]  # fmt: skip


def __getattr__(name: str) -> "Method | Any":
    """Merge methods by name: `fs.ties(base, a, b, density=0.4)` builds an expression."""
    from fluxsmith.methods import METHODS, find_method, installed_methods

    if name in METHODS or name in installed_methods():
        return find_method(name)
    raise AttributeError(f"module 'fluxsmith' has no attribute '{name}'; `fluxsmith list methods` names the methods")

"""fluxsmith: a workshop for the weights of FLUX-like image models.

    import fluxsmith as fs

    schnell = fs.model("black-forest-labs/FLUX.1-schnell")
    krea = fs.model("black-forest-labs/FLUX.1-Krea-dev")
    fs.merge(fs.weighted_sum(schnell, krea, alpha=0.5), output="merged", guidance="drop")

Every merge method (`fluxsmith list methods`) is a function of this module; importing it imports no torch.
"""

from typing import TYPE_CHECKING, Any

from fluxsmith.api import load, load_recipe, merge, plan
from fluxsmith.errors import FluxsmithError
from fluxsmith.methods.base import Delta, Measured, PerInput, Weight, merge_method
from fluxsmith.recipes.expressions import model
from fluxsmith.version import VERSION

if TYPE_CHECKING:
    from fluxsmith.methods import Method

__version__ = VERSION

__all__ = [
    "Delta",
    "FluxsmithError",
    "Measured",
    "PerInput",
    "Weight",
    "__version__",
    "load",
    "load_recipe",
    "merge",
    "merge_method",
    "model",
    "plan",
]


def __getattr__(name: str) -> "Method | Any":
    """Merge methods by name: `fs.ties(base, a, b, density=0.4)` builds an expression."""
    from fluxsmith.methods import METHODS

    if name in METHODS:
        return METHODS[name]
    raise AttributeError(f"module 'fluxsmith' has no attribute '{name}'; `fluxsmith list methods` names the methods")

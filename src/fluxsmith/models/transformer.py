"""A recipe as a stock diffusers module, filled straight from the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from fluxsmith.engine.execution import Settings
from fluxsmith.engine.in_memory import load_state_dict
from fluxsmith.errors import IncompatibleError, UsageError
from fluxsmith.recipes.expressions import Expression, as_expression
from fluxsmith.recipes.recipe import OutputOptions, Recipe

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["load_transformer"]


def load_transformer(
    recipe: Recipe | Expression | str, *, dtype: str | None = None, settings: Settings | None = None
) -> FluxTransformer2DModel:
    """The transformer that a recipe, expression or checkpoint gives, in memory, without a file in between.

    The module's parameters are the engine's output buffer: there is no second copy.
    Raises IncompatibleError where the result is no FLUX.1 transformer, UsageError where diffusers is missing.
    """
    try:
        from accelerate import init_empty_weights
        from diffusers import FluxTransformer2DModel
    except ImportError as error:
        raise UsageError("usage.missing-extra", f"{error.name} is not installed", fix="pip install 'fluxsmith[generate]'") from None

    wanted = recipe if isinstance(recipe, Recipe) else Recipe(as_expression(recipe))
    output = OutputOptions("diffusers", dtype or wanted.output.dtype, None)
    try:
        tensors, plan = load_state_dict(replace(wanted, output=output), settings)
    except IncompatibleError as error:
        if error.code != "output.no-layout":
            raise
        # the layout is ours, not the caller's: its remedy would be to leave out what was never said
        raise IncompatibleError("model.wrong-kind", "the result is no FLUX.1 transformer", fix="give a FLUX.1 model") from None
    if plan.family != "flux1" or plan.config is None:
        raise IncompatibleError("model.wrong-kind", f"the result is {plan.family}, not a FLUX.1 transformer")
    with init_empty_weights():
        transformer = cast("FluxTransformer2DModel", FluxTransformer2DModel.from_config(dict(plan.config)))
    transformer.load_state_dict(tensors, strict=True, assign=True)
    return transformer.eval()

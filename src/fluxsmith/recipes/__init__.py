"""Recipes, the wish: expressions in Python, YAML files, one-line formulas, and the numbers and selectors in them.

expressions.py  nodes and operators; weight, delta and param spaces
calls.py        calls of methods, checked
schedules.py    numbers per block, ramps
lines.py        LiNeS: a scale that grows from block to block
selectors.py    which tensors a number or rule is for
recipe.py       Recipe, rules, guidance policies
formula.py      `0.7*dev + 0.3*krea`
schema.py       the fields of the YAML, strict
loading.py      file to Recipe;  building.py  its fields to expressions;  saving.py  Recipe to text
files.py        fs.recipes.load and save, by suffix
mecha.py        sd-mecha's `.mecha`, read;  mecha_methods.py  its methods as ours;  mecha_writing.py  written
mergekit.py     mergekit's YAML, read;  mergekit_documents.py  its fields;  mergekit_methods.py  its methods as ours
mergeflux.py    what MergeFlux's two scripts mean, as recipes
presets/        recipes that ship with the package
"""

from fluxsmith.recipes import calls
from fluxsmith.recipes.expressions import Expression, Model, model
from fluxsmith.recipes.files import load, save
from fluxsmith.recipes.recipe import Guidance, OutputOptions, Recipe, Rule

_ = calls  # methods become nodes when it is imported

__all__ = ["Expression", "Guidance", "Model", "OutputOptions", "Recipe", "Rule", "load", "model", "save"]

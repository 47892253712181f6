"""One-line formulas, read and shown.

0.7*dev + 0.3*krea          dev + 0.3*(krea - dev)          sums
dev + 0.8*style - 0.3*blurry                                adapters are deltas
ties(dev, krea, photo, density=0.4, weights=[1, 0.5])       methods; options by name
weighted_sum(dev, krea, alpha=train_difference_mask(dev, krea, base))    an option that is a tensor
dev | krea                                                  dev where it has a tensor, else krea
component(dev, "vae")       omit(dev, "clip_l", "t5")       parts of a model
literal(0.5)                                                a number as a tensor of numbers
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fluxsmith.errors import Position, RecipeError, did_you_mean
from fluxsmith.methods import find_method
from fluxsmith.recipes.calls import call
from fluxsmith.recipes.expressions import (
    Adapter,
    Call,
    Combination,
    Component,
    Expression,
    Fallback,
    Literal,
    Model,
    Nothing,
    component,
    literal,
    omit,
)

__all__ = ["parse_formula", "show"]

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.BitOr: operator.or_,
}
_PARTS = {"component": component, "omit": omit}
_DEEP = 40  # nesting beyond which a formula is no longer read by people


def parse_formula(text: str, names: Mapping[str, Expression], file: str = "formula", missing: str = "add -m {}=FILE") -> Expression:
    """The expression that a formula means; `names` are the models and steps that it may use.

    `missing` is the advice where a name is none of them. Raises RecipeError pointing at the place that cannot be meant.
    """
    text = text.strip()
    whole = Position(file, 1, 1, text, max(len(text), 1))
    try:
        tree = ast.parse(text, mode="eval")
        value = _Reader(text, names, file, missing).read(tree.body)
    except SyntaxError as error:
        at = Position(file, 1, error.offset or 1, text)
        raise RecipeError("recipe.bad-formula", "the formula cannot be read", at=at, hint=error.msg) from None
    except (RecursionError, MemoryError):  # the parser's own stack is small, too
        raise RecipeError("recipe.bad-formula", "the formula is nested too deeply", at=whole) from None
    if not isinstance(value, Expression):
        raise RecipeError("recipe.bad-formula", f"`{text}` is a number, not a model", at=whole)
    return value


class _Reader:
    def __init__(self, text: str, names: Mapping[str, Expression], file: str, missing: str) -> None:
        self._text, self._names, self._file, self._missing = text, names, file, missing

    def read(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self.read(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self._binary(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, node.func.id)
        raise self._error(node, "a formula has numbers, names, + - * / | and calls of methods")

    def _binary(self, node: ast.BinOp) -> Any:
        left, right = self.read(node.left), self.read(node.right)
        both = isinstance(left, Expression), isinstance(right, Expression)
        one_is_a_number = both in ((True, False), (False, True))
        wrong: dict[type[ast.operator], bool] = {
            ast.Add: one_is_a_number,
            ast.Sub: one_is_a_number,
            ast.Mult: both == (True, True),
            ast.Div: both[1],
            ast.BitOr: both != (True, True),
        }
        if wrong[type(node.op)]:
            raise self._error(node, "models are added to models (or stand on both sides of `|`) and multiplied by numbers")
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ZeroDivisionError:
            raise self._error(node, "division by zero") from None
        except RecipeError as error:
            error.at = error.at or self._place(node)
            raise

    def _name(self, node: ast.Name) -> Expression:
        if node.id not in self._names:
            hint = did_you_mean(node.id, list(self._names))
            raise self._error(node, f"`{node.id}` is no model of this recipe", hint or self._missing.format(node.id))
        return self._names[node.id]

    def _call(self, node: ast.Call, name: str) -> Expression:
        if name in _PARTS or name == "literal":
            return self._special(node, name)
        try:
            method = find_method(name)
            inputs = [self._input(argument) for argument in node.args]
            options = {self._option_name(keyword): self._option(keyword) for keyword in node.keywords}
            return call(method, inputs, options)
        except RecipeError as error:
            error.at = error.at or self._place(node)
            raise

    def _input(self, node: ast.expr) -> Expression:
        value = self.read(node)
        if not isinstance(value, Expression):
            raise self._error(node, "a method takes models, this is a number", "options are given by name")
        return value

    def _option_name(self, keyword: ast.keyword) -> str:
        if keyword.arg is None:
            raise self._error(keyword.value, "an option is given by its name")
        return keyword.arg

    def _option(self, keyword: ast.keyword) -> Any:
        return self._value(keyword.value)

    def _value(self, node: ast.expr) -> Any:
        """A number, a word in quotes, a node, or a list of them."""
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            pass
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._value(element) for element in node.elts]
        if isinstance(node, (ast.Name, ast.Call, ast.BinOp)):
            return self.read(node)
        raise self._error(node, "an option is a number, a word in quotes, or a tensor of numbers")

    def _special(self, node: ast.Call, name: str) -> Expression:
        """component(model, "vae"), omit(model, "t5"), literal(0.5)."""
        if node.keywords or not node.args or (name == "literal" and len(node.args) != 1) or (name != "literal" and len(node.args) < 2):
            example = "literal(0.5)" if name == "literal" else f'{name}(dev, "vae")'
            raise self._error(node, f"{name} is written as in {example}")
        first, *rest = node.args
        if name == "literal":
            value = self.read(first)
            if not isinstance(value, (int, float)):
                raise self._error(first, "a literal is a number")
            return literal(float(value))
        words = [self._value(word) for word in rest]
        if not all(isinstance(word, str) for word in words):
            raise self._error(node, "components are words in quotes")
        return _PARTS[name](self._input(first), *words)

    def _place(self, node: ast.expr) -> Position:
        width = max((node.end_col_offset or node.col_offset + 1) - node.col_offset, 1)
        return Position(self._file, 1, node.col_offset + 1, self._text, width)

    def _error(self, node: ast.expr, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError("recipe.bad-formula", message, at=self._place(node), hint=hint)


def show(node: Expression, depth: int = 0) -> str:
    """A formula for an expression, which `parse_formula` reads back (schedules, and what is nested very deeply, are shown
    as `...`)."""
    if depth > _DEEP:
        return "..."
    inner = depth + 1
    if isinstance(node, (Model, Adapter)):
        return node.name
    if isinstance(node, Nothing):
        return "nothing"
    if isinstance(node, Combination):
        return _show_sum(node, inner)
    if isinstance(node, Literal):
        return f"literal({_show_value(node.value, inner)})"
    if isinstance(node, Fallback):
        sides = [(n, show(n, inner)) for n in (node.first, node.second)]
        return " | ".join(f"({text})" if isinstance(n, (Combination, Fallback)) else text for n, text in sides)
    if isinstance(node, Component):
        words = ", ".join(f'"{name}"' for name in node.names)
        return f"{'omit' if node.omitted else 'component'}({show(node.node, inner)}, {words})"
    assert isinstance(node, Call)
    options = [f"{key}={_show_value(value, inner)}" for key, value in node.options.items()]
    return f"{node.method.name}({', '.join([show(i, inner) for i in node.inputs] + options)})"


def _show_sum(node: Combination, depth: int) -> str:
    text = ""
    for term, factor in node.terms:
        size = "" if abs(factor) == 1 else f"{abs(factor):.12g}*"
        shown = show(term, depth)
        inner = f"({shown})" if isinstance(term, (Combination, Fallback)) else shown
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        text += f"{sign}{size}{inner}"
    return text


def _show_value(value: Any, depth: int) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_show_value(v, depth) for v in value) + "]"
    if isinstance(value, Expression):
        return show(value, depth)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.12g}"
    return repr(value) if isinstance(value, (str, bool)) else "..."

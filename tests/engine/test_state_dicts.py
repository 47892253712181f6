"""Expressions over state dicts in memory: parameters, fallbacks, nesting, users' methods, and what they do wrong."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxsmith as fs
from fluxsmith.engine import memory
from fluxsmith.errors import FluxsmithError, IncompatibleError, MethodError, RecipeError, UsageError
from fluxsmith.methods import METHODS, find_method
from fluxsmith.methods.statistics import gram, kth_magnitude, sums
from fluxsmith.recipes.expressions import Expression

SHAPES = {"one.weight": (40, 24), "two.weight": (7, 5), "bias": (24,), "scale": ()}


def numbers(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


A, B, C = numbers(1), numbers(2), numbers(3)


def node(tensors: Mapping[str, Tensor], name: str, **more: Any) -> Expression:
    return fs.state_dict(tensors, name=name, **more)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE", 128)
    monkeypatch.setattr(memory, "SMALLEST", 64)


@pytest.fixture
def registry() -> Iterator[None]:
    """Methods that a test declares are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_a_state_dict_goes_in_and_comes_out() -> None:
    out = fs.load_state_dict(fs.weighted_sum(node(A, "a"), node(B, "b"), alpha=0.25))
    assert set(out) == set(A)
    assert all(torch.equal(out[key], torch.lerp(A[key], B[key], 0.25)) for key in A)
    assert all(out[key].shape == A[key].shape for key in A)


def test_types_and_strides_in_memory_are_honoured() -> None:
    half = numbers(1, dtype=torch.bfloat16)
    turned = {"w": torch.arange(12.0).reshape(3, 4).t()}
    assert fs.load_state_dict(node(half, "a") * 1.0)["bias"].dtype == torch.bfloat16
    assert torch.equal(fs.load_state_dict(node(turned, "t") * 1.0)["w"], turned["w"])
    with pytest.raises(IncompatibleError, match="complex128"):
        fs.load_state_dict(node({"w": torch.zeros(2, dtype=torch.complex128)}, "z") * 1.0)


def test_a_tensor_without_elements_comes_out_as_it_is() -> None:
    found = fs.load_state_dict(fs.weighted_sum(node({"w": torch.ones(0, 4)}, "a"), node({"w": torch.ones(0, 4)}, "b"), alpha=0.5))
    assert (found["w"].shape, found["w"].dtype) == ((0, 4), torch.float32)


@pytest.mark.parametrize(("tensors", "told"), [
    ({"w": 3}, "`w` of memory:a is of type int"),
    ({1: torch.ones(2)}, "key of memory:a is 1"),
    ({"w": torch.ones(2, device="meta")}, "`w` of memory:a is on the meta device"),
    ({"w": torch.ones(2, 2).to_sparse()}, "`w` of memory:a is a sparse tensor"),
])  # fmt: skip
def test_what_is_no_tensor_with_values_is_named(tensors: Any, told: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        fs.load_state_dict(node(tensors, "a"))
    assert (caught.value.code, told in caught.value.message) == ("model.not-a-tensor", True)


def test_inputs_in_memory_are_not_changed() -> None:
    before = {key: tensor.clone() for key, tensor in A.items()}
    for name in ("linear", "ties", "dare_linear", "slerp", "task_arithmetic"):
        fs.load_state_dict(METHODS[name](node(A, "a"), node(B, "b")))
    assert all(torch.equal(A[key], before[key]) for key in A)


def test_the_first_that_has_a_tensor_is_taken() -> None:
    part = {key: B[key] for key in ("bias", "scale")}
    out = fs.load_state_dict(node(part, "b") | node(A, "a"))
    assert set(out) == set(A)
    assert all(torch.equal(out[key], (part.get(key, A[key]))) for key in A)


def test_a_fallback_mends_what_is_missing_below_it() -> None:
    part = {key: B[key] for key in ("bias", "scale")}
    a, b = node(A, "a"), node(part, "b")
    out = fs.load_state_dict(fs.weighted_sum(a, b, alpha=0.5) | a)
    assert all(torch.equal(out[key], torch.lerp(A[key], part[key], 0.5) if key in part else A[key]) for key in A)
    with pytest.raises(IncompatibleError, match=r"b has no `one\.weight`"):
        fs.load_state_dict(fs.weighted_sum(a, b, alpha=0.5))


def test_numbers_that_are_no_weights() -> None:
    mask = {key: (tensor > 0).float() for key, tensor in C.items()}
    a, b, m = node(A, "a"), node(B, "b"), node(mask, "m", holds="param")
    out = fs.load_state_dict(_masked()(a, b, share=m))
    assert all(torch.equal(out[key], A[key] + (B[key] - A[key]) * mask[key]) for key in A)
    half = fs.load_state_dict(_masked()(a, b, share=m * 0.5))
    assert all(torch.equal(half[key], A[key] + (B[key] - A[key]) * (mask[key] * 0.5)) for key in A)
    number = fs.load_state_dict(_masked()(a, b, share=fs.literal(0.25)))
    assert all(torch.equal(number[key], A[key] + (B[key] - A[key]) * 0.25) for key in A)


def _masked() -> Any:
    @fs.merge_method
    def masked(a: fs.Weight, b: fs.Weight, *, share: float | fs.Param = 0.5) -> fs.Weight:
        """a + share (b - a)."""
        return a + (b - a) * share

    return masked


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (lambda a, b, m: fs.linear(a, m), "linear takes a weight where m is a param"),
        (lambda a, b, m: fs.linear(a, b - a), r"linear takes a weight where \(...\) is a delta"),
        (lambda a, b, m: _masked()(a, b, share=a), "`share` of masked takes a param where a is a weight"),
        (lambda a, b, m: fs.linear(a, b + m), "no weights .param. are added to weights"),
        (lambda a, b, m: fs.linear(a, a + b), "add up to 2: neither a weight .1. nor a delta .0."),
        (lambda a, b, m: a | (b - a), "a is a weight, its fallback .* a delta"),
        (lambda a, b, m: fs.ties(a, b, density=m), "`density` of ties is a number, not a tensor such as m"),
        (lambda a, b, m: fs.ties(a, b, density=1.5), "lies between 0 and 1, not at 1.5"),
        (lambda a, b, m: fs.linear(a, b, weights=[0.5, float("nan")]), "must be a finite number, not `nan`"),
        (lambda a, b, m: fs.linear(a, b, weights=[0.5, float("inf")]), "must be a finite number, not `inf`"),
        (lambda a, b, m: fs.linear(a, b, weights=[0.5]), "needs 2 numbers for `weights`, 1 are given"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_wrong_spaces_and_options_say_how_to_mend_them(wish: Any, message: str) -> None:
    a, b, m = node(A, "a"), node(B, "b"), node(C, "m", holds="param")
    with pytest.raises(RecipeError, match=message):
        fs.plan(wish(a, b, m))


def test_a_delta_is_no_result() -> None:
    with pytest.raises(RecipeError, match="must be a weight"):
        fs.plan(node(A, "a") - node(B, "b"))


def test_nesting_is_no_question_of_depth() -> None:
    a, b = node({"w": torch.zeros(3)}, "a"), node({"w": torch.ones(3)}, "b")
    wish: Expression = a
    for _ in range(1500):
        wish = fs.weighted_sum(wish, b, alpha=0.001)
    out = fs.load_state_dict(wish)["w"]
    assert out == pytest.approx([1 - 0.999**1500] * 3, rel=1e-3)


@pytest.mark.usefixtures("registry")
def test_a_shared_expression_is_computed_once() -> None:
    calls: list[int] = []

    @fs.merge_method
    def counted(a: fs.Weight) -> fs.Weight:
        """a, counted."""
        calls.append(a.numel())
        return a.clone()

    shared = counted(node({"w": torch.ones(5)}, "a"))
    fs.load_state_dict(fs.linear(shared, fs.weighted_sum(shared, shared, alpha=0.3)))
    assert calls == [5]


@pytest.mark.usefixtures("registry")
def test_a_users_measured_method_in_a_few_lines() -> None:
    @fs.merge_method(statistics={"norms": sums(lambda a, b: (a.dot(a), b.dot(b)))})
    def same_length(a: fs.Weight, b: fs.Weight, *, norms: fs.Measured) -> fs.Weight:
        """b, as long as a."""
        return b * (norms[0] / norms[1]) ** 0.5

    out = fs.load_state_dict(same_length(node(A, "a"), node(B, "b")))
    assert all(torch.allclose(out[key].norm(), A[key].norm(), rtol=1e-5) for key in A)


@pytest.mark.usefixtures("registry")
def test_later_statistics_use_earlier_ones() -> None:
    def kept(count: int, share: float) -> int:
        return max(1, int(count * share))

    def mass(a: Tensor, *, thresholds: list[float]) -> list[Tensor]:
        return [(a.abs() * (a.abs() >= thresholds[0])).sum(), a.abs().sum()]

    @fs.merge_method(statistics={"thresholds": kth_magnitude(lambda a: [a], "share", kept), "mass": sums(mass)})
    def trimmed_l1(a: fs.Weight, *, thresholds: fs.Measured, mass: fs.Measured, share: fs.Share = 0.5) -> fs.Weight:
        """The largest elements, as long in L1 as all of them were."""
        return a * (a.abs() >= thresholds[0]) * (mass[1] / mass[0])

    out = fs.load_state_dict(trimmed_l1(node(A, "a"), share=0.25))["one.weight"]
    assert out.count_nonzero() == 240
    assert torch.allclose(out.abs().sum(), A["one.weight"].abs().sum(), rtol=1e-5)


@pytest.mark.usefixtures("registry")
def test_scalar_products_are_those_of_whole_tensors() -> None:
    seen: list[Any] = []

    @fs.merge_method(statistics={"products": gram(lambda a, b: [a, b, a - b])})
    def look(a: fs.Weight, b: fs.Weight, *, products: fs.Measured) -> fs.Weight:
        """a, after a look."""
        seen.append(products)
        return a.clone()

    fs.load_state_dict(look(node({"w": A["one.weight"]}, "a"), node({"w": B["one.weight"]}, "b")))
    x, y = A["one.weight"].double().flatten(), B["one.weight"].double().flatten()
    stack = torch.stack([x, y, (x - y).float().double()])
    assert torch.allclose(torch.tensor(seen[0], dtype=torch.float64), stack @ stack.T, rtol=1e-6)


@pytest.mark.usefixtures("registry")
def test_rows_stay_together() -> None:
    widths: set[tuple[int, ...]] = set()

    @fs.merge_method(rows=True)
    def by_rows(a: fs.Weight) -> fs.Weight:
        """Every row divided by its norm."""
        widths.add(tuple(a.shape[1:]))
        return a / a.norm(dim=1, keepdim=True)

    wide = numbers(4, {"wide": (3, 500), "conv": (4, 3, 5, 5), "vector": (300,)})
    out = fs.load_state_dict(by_rows(node(wide, "a")))
    assert widths == {(500,), (75,), (300,)}
    for key, tensor in wide.items():
        rows = tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor[None]
        assert torch.equal(out[key].reshape(rows.shape), rows / rows.norm(dim=1, keepdim=True)), key


@pytest.mark.usefixtures("registry")
def test_whole_matrices_keep_their_shapes() -> None:
    @fs.merge_method(whole=True)
    def transposed_twice(a: fs.Weight, b: fs.Weight) -> fs.Weight:
        """The mean of a and b, the long way."""
        return ((a + b) / 2).reshape(b.shape)

    shapes = {"w": (30, 40), "v": (9,)}
    a, b = numbers(1, shapes), numbers(2, shapes)
    out = fs.load_state_dict(transposed_twice(node(a, "a"), node(b, "b")))
    assert all(torch.equal(out[key], (a[key] + b[key]) / 2) for key in a)


def _wrong(kind: str) -> Any:
    @fs.merge_method
    def wrong(a: fs.Weight, b: fs.Weight) -> fs.Weight:
        """Not a merge."""
        if kind == "raises":
            raise ValueError("no such luck")
        return {"shape": a[:-1], "dtype": a.double(), "int": a.long(), "nothing": None}[kind]  # pyright: ignore[reportReturnType]

    return wrong


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("raises", "method.raised", ["ValueError: no such luck", "test_state_dicts.py", "one.weight"]),
        ("shape", "method.wrong-shape", ["[127]", "[128]", "one.weight"]),
        ("nothing", "method.wrong-shape", ["NoneType"]),
        ("dtype", "method.wrong-dtype", ["float64", "float32"]),
        ("int", "method.wrong-dtype", ["int64", "float32"]),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_method_that_is_wrong_is_one_error_and_no_output(kind: str, code: str, words: list[str], tmp_path: Any) -> None:
    with pytest.raises(MethodError) as raised:
        fs.merge(_wrong(kind)(node(A, "a"), node(B, "b")), tmp_path / "out.safetensors", threads=1)
    assert raised.value.code == code
    assert raised.value.exit_code == 4
    assert all(word in str(raised.value) for word in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("registry")
def test_no_method_takes_the_name_of_a_built_in_one() -> None:
    """Its outputs would carry a recipe that means something else where they are made again."""
    ties = METHODS["ties"]
    with pytest.raises(UsageError) as caught:

        @fs.merge_method(name="ties")
        def _mine(a: fs.Weight, b: fs.Weight) -> fs.Weight:  # pyright: ignore[reportUnusedFunction]
            return a

    assert (caught.value.code, METHODS["ties"] is ties) == ("method.name-taken", True)


def test_installed_packages_bring_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("smooth_max", "engine_methods_of_a_package:smooth_max", "fluxsmith.methods")
    broken = EntryPoint("broken", "there_is_no_such_module:f", "fluxsmith.methods")

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [e for e in (entry, broken) if e.group == group and name in (None, e.name)]

    monkeypatch.setattr("fluxsmith.entry_points.entry_points", entry_points)
    _write_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = fs.load_state_dict(fs.smooth_max(node(A, "a"), node(B, "b"), beta=50.0))
    assert torch.allclose(out["bias"], torch.maximum(A["bias"], B["bias"]), atol=0.03)
    with pytest.raises(MethodError, match="broken cannot be imported: ModuleNotFoundError"):
        find_method("broken")
    with pytest.raises(RecipeError) as raised:
        find_method("smoth_max")
    assert raised.value.hint == "did you mean `smooth_max`?"


def _write_package(folder: Path) -> None:
    (folder / "engine_methods_of_a_package.py").write_text(
        "import fluxsmith as fs\n\n\n"
        "@fs.merge_method\n"
        "def smooth_max(a: fs.Weight, b: fs.Weight, *, beta: float = 10.0) -> fs.Weight:\n"
        '    """log(exp(beta a) + exp(beta b)) / beta."""\n'
        "    import torch\n\n"
        "    return torch.logaddexp(a * beta, b * beta) / beta\n"
    )


@pytest.mark.parametrize(
    "declare",
    [
        lambda: fs.merge_method(lambda a: a),
        lambda: fs.merge_method(_untyped_option),
        lambda: fs.merge_method(_no_return),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_signature_that_is_none_is_refused_when_it_is_declared(declare: Any) -> None:
    with pytest.raises(FluxsmithError) as raised:
        declare()
    assert raised.value.code == "method.signature"


def _untyped_option(a: fs.Weight, *, alpha=0.5) -> fs.Weight:  # type: ignore[no-untyped-def]  # pyright: ignore
    return a * alpha


def _no_return(a: fs.Weight):  # type: ignore[no-untyped-def]
    return a


@pytest.mark.parametrize("wrong", ["x", None, True, float("nan"), float("inf")])
def test_models_are_multiplied_by_finite_numbers(wrong: Any) -> None:
    with pytest.raises(RecipeError, match="multiplied by a finite number"):
        _ = node(A, "a") * wrong


def test_models_are_not_multiplied_by_models_or_divided_by_nothing() -> None:
    a, b = node(A, "a"), node(B, "b")
    with pytest.raises(RecipeError, match="not by b"):
        _ = a * b  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(RecipeError, match="division by zero"):
        _ = a / 0


@pytest.mark.usefixtures("registry")
def test_a_method_has_one_unit() -> None:
    with pytest.raises(UsageError, match="rows or whole tensors, not both"):

        @fs.merge_method(rows=True, whole=True)
        def both(a: fs.Weight) -> fs.Weight:  # pyright: ignore[reportUnusedFunction]
            """Never declared."""
            return a

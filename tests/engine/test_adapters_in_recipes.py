"""Adapters as deltas in recipes: sums, methods, strengths, accounting, refusals; deltas are worked out beside by torch."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.engine import memory
from fluxsmith.errors import IncompatibleError, RecipeError
from fluxsmith.hub import pocket_folder
from fluxsmith.recipes.expressions import Expression
from fluxsmith.recipes.formula import parse_formula, show
from fluxsmith.recipes.loading import recipe_from_text
from fluxsmith.recipes.recipe import Recipe
from fluxsmith.recipes.saving import recipe_to_text
from support.cli_runs import run_cli
from support.tiny_flux import TinyCheckpoints

RANK, ALPHA = 3, 2.0
MATRICES = ("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_mlp.2", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix takes many tiles, none of them a divisor of its rows."""
    monkeypatch.setattr(memory, "TILE", 1 << 10)
    monkeypatch.setattr(memory, "SMALLEST", 1 << 8)


@pytest.fixture
def base(tiny: TinyCheckpoints) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in fs.load_state_dict(str(tiny.a), layout="bfl", dtype="fp32").items()}


def lora(path: Path, base: Mapping[str, Tensor], names: tuple[str, ...] = MATRICES, seed: int = 0) -> dict[str, Tensor]:
    """A random kohya LoRA in a file; its delta by canonical name."""
    generator = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    for name in names:
        rows, columns = base[f"{name}.weight"].shape
        up, down = torch.randn(rows, RANK, generator=generator), torch.randn(RANK, columns, generator=generator)
        key = "lora_unet_" + name.replace(".", "_")
        stored |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(ALPHA)}
        deltas[f"{name}.weight"] = ALPHA / RANK * up @ down
    save_file(stored, path)
    return deltas


def run(wish: Expression) -> dict[str, Tensor]:
    return fs.load_state_dict(wish, layout="bfl", dtype="fp32")


def check(found: Mapping[str, Tensor], base: Mapping[str, Tensor], deltas: Mapping[str, Tensor]) -> None:
    for name, tensor in base.items():
        wanted = tensor + deltas[name] if name in deltas else tensor
        torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["a", "sharded", "comfy"])
def test_a_sum_of_adapters_in_any_layout(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path, layout: str) -> None:
    one = lora(tmp_path / "one.safetensors", base)
    two = lora(tmp_path / "two.safetensors", base, MATRICES[1:3], seed=1)
    model = fs.model(str(getattr(tiny, layout)), name="base")
    wish = model + 0.8 * fs.adapter(str(tmp_path / "one.safetensors")) - 0.3 * fs.adapter(str(tmp_path / "two.safetensors"))
    check(run(wish), base, {name: 0.8 * d - 0.3 * two.get(name, torch.zeros(())) for name, d in one.items()})


def test_tensors_that_no_adapter_changes_are_copied(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    lora(tmp_path / "one.safetensors", base)
    plan = fs.plan(fs.model(str(tiny.a), name="base") + fs.adapter(str(tmp_path / "one.safetensors"), name="style"))
    assert plan.count_actions(plan.jobs) == {"copied": len(base) - len(MATRICES), "merged": len(MATRICES)}
    assert {i.name: dict(i.outcome) for i in plan.inputs}["style"] == {"applied": 3 * len(MATRICES)}


def test_strength_by_block_and_by_named_part(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    deltas = lora(tmp_path / "style.safetensors", base)
    text = f"""
fluxsmith: 1
models:
  base: {tiny.a}
  style: {{adapter: {tmp_path / "style.safetensors"}, weight: {{default: 1.0, double.0: 0.5, single.0: 0.0, q: 2.0}}}}
merge: base + 0.5*style
"""
    found = fs.load_state_dict(recipe_from_text(text, "text"), layout="bfl", dtype="fp32")
    width = base["double_blocks.0.img_attn.qkv.weight"].shape[1]
    qkv, linear1 = (deltas[f"{name}.weight"].clone() for name in (MATRICES[0], MATRICES[2]))
    qkv[:width], qkv[width:] = qkv[:width], 0.25 * qkv[width:]
    linear1[:width], linear1[width:] = linear1[:width], 0.0
    other = {f"{name}.weight": 0.5 * deltas[f"{name}.weight"] for name in (MATRICES[1], MATRICES[3])}
    check(found, base, {f"{MATRICES[0]}.weight": qkv, f"{MATRICES[2]}.weight": linear1, **other})


def test_an_adapter_among_the_models_of_a_method(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    """`ties(base, style, other)` with an adapter is that of the models with the adapter baked in."""
    lora(tmp_path / "style.safetensors", base)
    model, other = fs.model(str(tiny.a), name="base"), fs.model(str(tiny.b), name="other")
    style = fs.adapter(str(tmp_path / "style.safetensors"), name="style")
    fs.merge(model + style, tmp_path / "baked.safetensors", dtype="fp32")
    baked = fs.model(str(tmp_path / "baked.safetensors"), name="baked")
    for method in (lambda m: fs.ties(model, m, other, density=0.4), lambda m: fs.slerp(m, other, alpha=0.3)):
        adapted = style if method(model + style).method.inputs[0].name == "base" else model + style
        found, wanted = run(method(adapted)), run(method(baked))
        assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)


def test_a_method_on_deltas_alone(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    """`truncate_rank(style)`: tensors that the adapter does not change count as zero."""
    deltas = lora(tmp_path / "style.safetensors", base)
    style = fs.adapter(str(tmp_path / "style.safetensors"))
    found = run(fs.model(str(tiny.a), name="base") + fs.truncate_rank(style, rank=RANK))
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name] - base[name], delta, rtol=1e-3, atol=1e-4)


def test_same_bytes_for_any_threads(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    lora(tmp_path / "style.safetensors", base)
    wish = fs.model(str(tiny.a), name="base") + 0.7 * fs.adapter(str(tmp_path / "style.safetensors"))
    written: set[bytes] = set()
    for threads in (1, 2, 4):
        fs.merge(wish, tmp_path / "out.safetensors", threads=threads, force=True)
        written.add((tmp_path / "out.safetensors").read_bytes())
    assert len(written) == 1


def test_recipes_with_adapters_are_read_back_and_reproduced(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    lora(tmp_path / "style.safetensors", base)
    model, other = fs.model(str(tiny.a), name="base"), fs.model(str(tiny.b), name="other")
    style = fs.adapter(str(tmp_path / "style.safetensors"), name="style", weight=0.5, ignore=["lora_te*"], components=["transformer"])
    wish = (model + style) * 0.5 + other * 0.5
    recipe = Recipe(wish)
    again = recipe_from_text(recipe_to_text(recipe), "text")
    assert recipe_to_text(again) == recipe_to_text(recipe)
    (found,) = again.adapters()
    assert (found.weight, found.ignore, found.components) == (0.5, ("lora_te*",), ("transformer",))
    assert show(parse_formula(show(wish), {"base": model, "other": other, "style": style})) == show(wish)


def test_sums_with_adapters_stay_closed(tiny: TinyCheckpoints) -> None:
    """What an adapter reads of weights are those that it was added to, not those of a later average."""
    a, b = fs.model(str(tiny.a), name="a"), fs.model(str(tiny.b), name="b")
    s, t = fs.adapter("s.safetensors"), fs.adapter("t.safetensors")
    assert show((a + s) * 0.5 + b * 0.5) == "0.5*(a + s) + 0.5*b"
    assert show(a + s + t) == "a + s + t"
    assert show((a + s) + (b - a)) == "a + s + b - a" or show((a + s) + (b - a)) == "(a + s) + b - a"


def test_an_adapter_that_changes_nothing(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "zero.safetensors"
    lora(path, base)
    save_file({key: tensor * 0 if "lora_up" in key else tensor for key, tensor in load_file(path).items()}, path)
    with pytest.raises(IncompatibleError, match="changes nothing"):
        fs.merge(fs.model(str(tiny.a), name="base") + fs.adapter(str(path)), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(RecipeError, match="contributes nothing"):
        fs.plan(fs.model(str(tiny.a), name="base") + fs.adapter(str(path), weight=0.0))


def test_factors_that_are_not_finite(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    lora(path, base)
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if "lora_down" in key)[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(IncompatibleError, match=r"lora_unet_\w+") as caught:
        fs.merge(fs.model(str(tiny.a), name="base") + fs.adapter(str(path)), tmp_path / "out.safetensors")
    assert caught.value.facts["file"] == str(path)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_delta_alone_is_no_result(base: dict[str, Tensor], tmp_path: Path) -> None:
    lora(tmp_path / "style.safetensors", base)
    with pytest.raises(RecipeError, match="delta"):
        fs.plan(fs.adapter(str(tmp_path / "style.safetensors")))


def test_a_control_adapter_widens_the_base(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    """BFL's control adapters: columns of zeros are added to img_in before the delta, norm scales are replaced."""
    rows, columns = base["img_in.weight"].shape
    down, up, bias = torch.randn(RANK, 2 * columns), torch.randn(rows, RANK), torch.randn(rows)
    norm = "double_blocks.0.img_attn.norm.query_norm.scale"
    scale = torch.randn_like(base[norm])
    stored = {"img_in.lora_A.weight": down, "img_in.lora_B.weight": up, "img_in.lora_B.bias": bias, norm: scale}
    save_file(stored, tmp_path / "control.safetensors")
    wish = fs.model(str(tiny.a), name="base") + 0.5 * fs.adapter(str(tmp_path / "control.safetensors"))
    found = run(wish)
    padded = torch.cat([base["img_in.weight"], torch.zeros(rows, columns)], dim=1)
    torch.testing.assert_close(found["img_in.weight"], padded + 0.5 * up @ down, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["img_in.bias"], base["img_in.bias"] + 0.5 * bias)
    torch.testing.assert_close(found[norm], torch.lerp(base[norm], scale, 0.5))
    fs.merge(wish, tmp_path / "wide", layout="diffusers")
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "wide")
    assert model.config["in_channels"] == 2 * columns and model.config["out_channels"] == columns


def test_what_was_applied_is_checked_before_it_is_made_again(tmp_path: Path) -> None:
    """Adapters are inputs with hashes, and so is the config beside PEFT's tensors, which says how strong they are."""
    shutil.copytree(pocket_folder() / "faint-lokr", tmp_path / "lokr")
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    assert run_cli("apply", tmp_path / "lokr", "-b", "pocket/base", "-o", first).code == 0
    assert run_cli("reproduce", first, "-o", again).code == 0
    assert again.read_bytes() == first.read_bytes()
    config = tmp_path / "lokr" / "adapter_config.json"
    config.write_text(config.read_text().replace('"alpha": 4.0', '"alpha": 8.0'))
    changed = run_cli("reproduce", first, "-o", tmp_path / "other.safetensors")
    assert changed.code == 4 and "reproduce.other-input" in changed.err and "adapter_config.json" in changed.err
    assert not (tmp_path / "other.safetensors").exists()


def test_parts_of_a_weight_that_is_read_whole(tiny: TinyCheckpoints, base: dict[str, Tensor], tmp_path: Path) -> None:
    """DoRA by columns over fused q, k and v has one norm for all of them: they cannot have strengths of their own."""
    lora(tmp_path / "style.safetensors", base, MATRICES[:1])
    stored = load_file(tmp_path / "style.safetensors")
    key = "lora_unet_" + MATRICES[0].replace(".", "_")
    save_file({**stored, f"{key}.dora_scale": torch.rand(1, 48) + 0.5}, tmp_path / "style.safetensors")
    text = "fluxsmith: 1\nmodels:\n  base: {}\n  style: {{adapter: {}, weight: {{default: 1.0, {}: 0.5}}}}\nmerge: base + style\n"
    places = (tiny.a, tmp_path / "style.safetensors")
    assert fs.plan(recipe_from_text(text.format(*places, "double.0"), "text")).jobs
    with pytest.raises(IncompatibleError, match=r"adapter\.parts-of-a-whole"):
        fs.plan(recipe_from_text(text.format(*places, "q"), "text"))

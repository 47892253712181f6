"""`.mecha` files that sd-mecha writes are read and give what sd-mecha makes of them; files that we write it reads back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.recipes.loading import load_recipe
from support.tiny_flux import TinyCheckpoints, tensors_of

from .agreement import Silent, agreement

sd_mecha: Any = pytest.importorskip("sd_mecha", reason="sd-mecha is an oracle and is not installed (pip install sd-mecha)")

PREFIX = "model.diffusion_model."
KEY = "double_blocks.0.img_mlp.0.weight"
Nodes = tuple[Any, Any, Any]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three models of a family that nobody knows: quick, since sd-mecha plans every key that a known family has."""
    folder = tmp_path_factory.mktemp("plain")
    generator = torch.Generator().manual_seed(5)
    shapes = {"first.weight": (40, 24), "first.bias": (40,), "second.weight": (24, 40), "scale": (24,)}
    for name in "abc":
        drawn = {key: torch.randn(shape, generator=generator).mul(0.05).bfloat16() for key, shape in shapes.items()}
        save_file(drawn, folder / f"{name}.safetensors")
    return tuple(folder / f"{name}.safetensors" for name in "abc")


def unknown(plain: tuple[Path, ...]) -> Nodes:
    a, b, c = (sd_mecha.model(path, None, "weight") for path in plain)
    return a, b, c


def theirs(tiny: TinyCheckpoints) -> Nodes:
    a, b, c = (sd_mecha.model(path, "flux-flux", "weight") for path in (tiny.a, tiny.b, tiny.c))
    return a, b, c


def serialised(recipe: Any) -> str:
    """The text that sd-mecha saves; its own check of keys refuses models with fewer blocks than FLUX has."""
    with sd_mecha.open_graph(recipe) as graph:
        final = graph.finalize_root(model_config_preference=("singleton-mecha",), check_mandatory_keys=False)
        return sd_mecha.serialize(final, finalize=False)


def run_theirs(recipe: Any, folder: Path) -> dict[str, Tensor]:
    out = folder / "sd-mecha.safetensors"
    sd_mecha.merge(recipe, output=out, merge_dtype=torch.float32, output_dtype=torch.bfloat16, threads=1, tqdm=Silent)
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors_of(out).items()}


def run_ours(text: str, folder: Path) -> dict[str, Tensor]:
    file = folder / "recipe.mecha"
    file.write_text(text)
    out = folder / "fluxsmith.safetensors"
    fs.merge(load_recipe(file), out, dtype="bf16", force=True)
    return tensors_of(out)


def ties(models: Nodes, **options: Any) -> Any:
    a, b, c = models
    return a + sd_mecha.ties_sum(b - a, c - a, **options)


def extended(models: Nodes, **options: Any) -> Any:
    a, b, c = models
    return a + sd_mecha.ties_sum_extended(b - a, c - a, **options)


def mask(models: Nodes) -> Any:
    a, b, c = models
    return sd_mecha.weighted_sum(a, b, alpha=sd_mecha.train_difference_mask(a, b, c, alpha=0.5))


def per_key(models: Nodes) -> Any:
    a, b, _ = models
    return sd_mecha.weighted_sum(a, b, alpha=sd_mecha.fallback(sd_mecha.value_to_node({PREFIX + KEY: 0.125}), 0.5))


def half(models: Nodes) -> Any:
    a, b, c = models
    return sd_mecha.weighted_sum(sd_mecha.weighted_sum(a, b).to(dtype=torch.float16).to(dtype=torch.float32), c)


#: name, recipe, least share of equal bf16 numbers (the others are neighbours)
EXACT: list[tuple[str, Callable[[Nodes], Any], float]] = [
    ("weighted_sum", lambda m: sd_mecha.weighted_sum(m[0], m[1], alpha=0.3), 1.0),
    ("a mask as alpha", mask, 0.999),
    ("operators", lambda m: m[0] + (m[1] - m[2]) * 0.3, 0.99),
    ("add_difference", lambda m: sd_mecha.add_difference(m[0], m[1], m[2], alpha=0.4), 1.0),
    ("add_difference between its bounds", lambda m: sd_mecha.add_difference(*m, alpha=0.8, clamp_to_ab=True), 1.0),
    ("add_perpendicular", lambda m: sd_mecha.add_perpendicular(*m), 0.99),
    ("n_average", lambda m: sd_mecha.n_average(*m), 0.98),
    ("slerp", lambda m: sd_mecha.slerp(m[0], m[1], alpha=0.3), 0.99),
    ("ties of everything", lambda m: ties(m, k=1.0), 0.999),
    ("ties by magnitude", lambda m: ties(m, k=1.0, vote_sgn=True), 0.999),
    ("ties without Model Stock", lambda m: extended(m, k=1.0, apply_stock=True), 0.999),
    ("ties with Model Stock", lambda m: extended(m, k=1.0), 0.98),
    ("model_stock", lambda m: sd_mecha.n_model_stock(*m), 0.98),
    ("geometric_sum", lambda m: sd_mecha.geometric_sum(m[0], m[1], alpha=0.4), 0.98),
    ("add_cosine_a", lambda m: sd_mecha.add_cosine_a(m[0], m[1]), 0.98),
    ("add_cosine_b", lambda m: sd_mecha.add_cosine_b(m[0], m[1]), 0.98),
    ("clamp", lambda m: sd_mecha.clamp(*m), 0.999),
    ("clamp with stiffness", lambda m: sd_mecha.clamp(m[0], m[1], m[2], stiffness=0.4), 0.98),
    ("crossover", lambda m: sd_mecha.crossover(m[0], m[1], alpha=0.4, tilt=0.3), 0.99),
    ("copy_region", lambda m: sd_mecha.copy_region(m[0], m[1], width=0.3, offset=0.5), 1.0),
    ("copy_region around a base", lambda m: sd_mecha.copy_region(*m, width=0.3, offset=0.5), 0.99),
    ("copy_region of the largest", lambda m: sd_mecha.copy_region(m[0], m[1], width=0.3, top_k=True), 0.99),
    ("multiply_quotient", lambda m: sd_mecha.multiply_quotient(*m), 0.99),
    ("opposite mask", lambda m: sd_mecha.weighted_sum(m[0], m[1], alpha=sd_mecha.add_opposite_mask(*m, alpha=0.2)), 0.99),
    ("strict mask", lambda m: sd_mecha.weighted_sum(m[0], m[1], alpha=sd_mecha.add_strict_opposite_mask(*m, alpha=0.2)), 0.99),
    ("truncate_rank", lambda m: m[0] + sd_mecha.truncate_rank(m[1] - m[0], rank=4, use_approximate_basis=False), 0.99),
    ("ties with dropout of nothing", lambda m: sd_mecha.add_ties_with_dare(*m, probability=0.0), 0.98),
    ("dare of nothing", lambda m: sd_mecha.add_ties_with_dare(*m, probability=0.0, apply_stock=True, alpha=0.5), 0.99),
    ("a cast in the middle", half, 0.99),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "share"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_its_files_give_its_tensors(plain: tuple[Path, ...], tmp_path: Path, recipe: Callable[[Nodes], Any], share: float) -> None:
    wish = recipe(unknown(plain))
    found = agreement(run_ours(serialised(wish), tmp_path), run_theirs(wish, tmp_path))
    assert found.share >= share
    assert found.far == 0


FLUX: list[tuple[str, Callable[[Nodes], Any], float]] = [
    ("weighted_sum", lambda m: sd_mecha.weighted_sum(m[0], m[1], alpha=0.3), 1.0),
    ("one component and a fallback", lambda m: sd_mecha.pick_component(sd_mecha.weighted_sum(m[0], m[1]), "diffuser") | m[0], 0.999),
    ("omitted component", lambda m: sd_mecha.omit_component(sd_mecha.weighted_sum(m[0], m[1]), "vae"), 1.0),
]


@pytest.mark.parametrize(("recipe", "share"), [case[1:] for case in FLUX], ids=[case[0] for case in FLUX])
def test_its_files_of_flux_give_its_tensors(tiny: TinyCheckpoints, tmp_path: Path, recipe: Callable[[Nodes], Any], share: float) -> None:
    wish = recipe(theirs(tiny))
    found = agreement(run_ours(serialised(wish), tmp_path), run_theirs(wish, tmp_path))
    assert found.share >= share
    assert found.far == 0


def test_ties_that_trim_keep_one_or_two_elements_less_per_delta(plain: tuple[Path, ...], tmp_path: Path) -> None:
    """sd-mecha keeps the elements from the int((1-k) n)-th on, the paper the k n largest (see test_sd_mecha)."""
    recipe = ties(unknown(plain), k=0.4)
    found = agreement(run_ours(serialised(recipe), tmp_path), run_theirs(recipe, tmp_path))
    assert 0.98 < found.share < 1


def test_a_number_for_one_key_leaves_the_other_keys_their_own(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """sd-mecha drops every key that the dict does not name, also where it falls back to one number for all."""
    found, expected = run_ours(serialised(per_key(theirs(tiny))), tmp_path), run_theirs(per_key(theirs(tiny)), tmp_path)
    assert list(expected) == [KEY]
    assert torch.equal(found[KEY], expected[KEY])
    a, b = tensors_of(tiny.a), tensors_of(tiny.b)
    assert found.keys() == a.keys()
    assert all(torch.equal(found[k], torch.lerp(a[k].float(), b[k].float(), 0.5).bfloat16()) for k in found if k != KEY)


@pytest.mark.parametrize("recipe", [lambda m: sd_mecha.geometric_median(*m), lambda m: extended(m, k=1.0, apply_median=True)])
def test_medians_are_near(plain: tuple[Path, ...], tmp_path: Path, recipe: Callable[[Nodes], Any]) -> None:
    """sd-mecha ends its iteration where float32 shows no progress, which is before the median."""
    found, expected = run_ours(serialised(recipe(unknown(plain))), tmp_path), run_theirs(recipe(unknown(plain)), tmp_path)
    assert found.keys() == expected.keys()
    for name in found:
        one, other = found[name].double(), expected[name].double()
        assert (one - other).norm() < 0.02 * other.norm(), name


@pytest.mark.parametrize(
    "recipe",
    [
        lambda m: sd_mecha.dropout(*m, probability=0.6, alpha=1.0, seed=3),
        lambda m: sd_mecha.add_ties_with_dare(*m, probability=0.6, apply_stock=True, seed=3),
        lambda m: sd_mecha.add_ties_with_dare(*m, probability=0.6, apply_stock=True, della_eps=0.3, seed=3),
        lambda m: sd_mecha.add_ties_with_dare(*m, probability=0.6, seed=3),
    ],
    ids=["dropout", "dare", "della", "dare with Model Stock"],
)  # fmt: skip
def test_random_methods_agree_in_distribution(plain: tuple[Path, ...], tmp_path: Path, recipe: Callable[[Nodes], Any]) -> None:
    """As many elements stay as they are, and those that move move as far."""
    wish = recipe(unknown(plain))
    found, expected = run_ours(serialised(wish), tmp_path), run_theirs(wish, tmp_path)
    base = tensors_of(plain[0])
    for key in ("first.weight", "second.weight"):
        mine, other = (result[key].float() - base[key].float() for result in (found, expected))
        assert abs(float((mine == 0).float().mean() - (other == 0).float().mean())) < 0.08
        assert float(mine.abs().mean()) == pytest.approx(float(other.abs().mean()), rel=0.2)
        assert not torch.equal(mine == 0, other == 0)


def test_rotation_of_a_tall_matrix(plain: tuple[Path, ...], tmp_path: Path) -> None:
    """Of wide matrices sd-mecha's map is no rotation (see test_sd_mecha_matrices)."""
    from sd_mecha.extensions.builtin.merge_methods import svd

    rotate: Any = svd.rotate
    a, b, _ = unknown(plain)
    wish = rotate(a, sd_mecha.weighted_sum(a, b, alpha=0.2), alpha=0.4)
    found, expected = run_ours(serialised(wish), tmp_path), run_theirs(wish, tmp_path)
    key = "first.weight"
    assert (found[key].float() - expected[key].float()).norm() < 0.005 * expected[key].float().norm()


def test_its_example_lora_merge(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A LoRA is an adapter, whatever its config is called, and its conversion is that adapter."""
    save_file(
        {
            "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": (up := torch.randn(48, 3)),
            "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (down := torch.randn(3, 48)),
        },
        tmp_path / "lora.safetensors",
    )
    config = 'model_config="sdxl-kohya_kohya_lora" merge_space="weight"'
    text = f'version 0.1.0\nmodel "{tiny.a}"\nmodel "{tmp_path / "lora.safetensors"}" {config}\n'
    (tmp_path / "r.mecha").write_text(
        text + 'merge "convert_\'sdxl-kohya_kohya_lora\'_to_base" &1\nmerge "add_difference" &0 &2 alpha=0.5\n'
    )
    found = fs.load_state_dict(fs.load_recipe(tmp_path / "r.mecha"), dtype="fp32")
    before = fs.load_state_dict(str(tiny.a), dtype="fp32")
    changed = [key for key in before if not torch.equal(found[key], before[key])]
    assert changed == ["double_blocks.0.img_attn.proj.weight"]
    torch.testing.assert_close(found[changed[0]] - before[changed[0]], 0.5 * up @ down, rtol=1e-4, atol=1e-5)


def test_its_example_split_unet_text_encoder(tmp_path: Path) -> None:
    """On SD1.5, as there: the U-Nets are averaged, the text encoders and the VAE take what is perpendicular."""
    from support.tiny_pipelines import PIPELINES, save_pipeline

    for seed, name in enumerate("abc"):
        save_pipeline(PIPELINES["sd15"], tmp_path / name, seed=seed)
        fs.merge(str(tmp_path / name), tmp_path / f"{name}.safetensors", layout="ldm")
    a, b, c = (sd_mecha.model(tmp_path / f"{name}.safetensors", "sd1-ldm", "weight") for name in "abc")
    wish = sd_mecha.pick_component(sd_mecha.weighted_sum(a, b), "diffuser") | sd_mecha.add_perpendicular(a, b, c)
    found, expected = run_ours(serialised(wish), tmp_path), run_theirs(wish, tmp_path)
    expected = {key if key.startswith(("first", "cond")) else PREFIX + key: tensor for key, tensor in expected.items()}
    compared = agreement(found, {key: expected[key] for key in found})
    assert compared.share > 0.999
    assert compared.far <= 3  # next to zero, where numbers of size one cancel

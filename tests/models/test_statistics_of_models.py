"""Statistics of a model on examples: against what its layers really take in and autograd gives, and in merges of pocket models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import fluxsmith as fs
from fluxsmith.analysis.examples import examples_from_file, pocket_examples
from fluxsmith.cli.statistics import command
from fluxsmith.errors import FileError, FluxsmithError
from fluxsmith.methods import METHODS
from fluxsmith.models.statistics import Examples, fisher_information, fisher_shapes, gram_shapes, input_grams
from support.tiny_flux import TINY, make_transformer


def some_examples(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    ids = torch.stack([torch.zeros(4), torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])], dim=1)
    return Examples(
        random(count, 4, TINY["in_channels"]), torch.rand(count, generator=generator), random(count, 4, TINY["in_channels"]),
        random(count, 3, TINY["joint_attention_dim"]), random(count, TINY["pooled_projection_dim"]), ids, torch.ones(count),
    )  # fmt: skip


@pytest.fixture(scope="module")
def transformer() -> Any:
    return make_transformer(1).float()


def test_grams_are_of_what_enters_a_layer(transformer: Any) -> None:
    batches = [some_examples(3), some_examples(2, seed=1)]
    taken: dict[str, list[Tensor]] = {}
    layers = {
        "double_blocks.1.img_attn.qkv.weight": "transformer_blocks.1.attn.to_k",
        "double_blocks.1.txt_attn.qkv.weight": "transformer_blocks.1.attn.add_v_proj",
        "double_blocks.0.img_mlp.2.weight": "transformer_blocks.0.ff.net.2",
        "single_blocks.2.linear1.weight": "single_transformer_blocks.2.proj_mlp",
        "single_blocks.2.linear2.weight": "single_transformer_blocks.2.proj_out",
        "final_layer.adaLN_modulation.1.weight": "norm_out.linear",
    }
    handles = [
        transformer.get_submodule(stem).register_forward_hook(
            lambda _, inputs, __, key=name: taken.setdefault(key, []).append(inputs[0].flatten(0, -2).detach())
        )
        for name, stem in layers.items()
    ]
    for batch in batches:
        batch.velocity(transformer)
    for handle in handles:
        handle.remove()
    grams = dict(input_grams(transformer, batches))
    assert {name: tuple(gram.shape) for name, gram in grams.items()} == gram_shapes(transformer)
    for name, rows in taken.items():
        x = torch.cat(rows).double()
        assert torch.allclose(grams[name].double(), x.mT @ x / len(x), rtol=1e-4, atol=1e-5), name
    latents = torch.cat([batch.latents.flatten(0, 1) for batch in batches])
    assert torch.allclose(grams["img_in.weight"], latents.mT @ latents / len(latents), rtol=1e-4, atol=1e-5)


def test_many_passes_give_the_same(transformer: Any) -> None:
    batches = [some_examples(2)]
    whole, pieces = dict(input_grams(transformer, batches)), dict(input_grams(transformer, batches, limit=50_000))
    assert list(whole) == list(pieces)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_fisher_is_the_mean_of_squared_gradients_in_canonical_order(transformer: Any) -> None:
    """The last layer's modulation has its halves in another order in diffusers; qkv is in three pieces there."""
    batch = some_examples(3)
    found = dict(fisher_information(transformer, [batch]))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == fisher_shapes(transformer)
    total: dict[str, Tensor] = {}
    for i in range(3):
        transformer.zero_grad()
        (batch[i].velocity(transformer) - batch.target[i]).square().mean().backward()
        for name, parameter in transformer.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad.square() / 3
    transformer.zero_grad()

    def check(name: str, expected: Tensor) -> None:
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-12), name

    scale, shift = total["norm_out.linear.weight"].chunk(2)
    check("final_layer.adaLN_modulation.1.weight", torch.cat([shift, scale]))
    attention = "transformer_blocks.0.attn"
    check("double_blocks.0.img_attn.qkv.bias", torch.cat([total[f"{attention}.to_{part}.bias"] for part in "qkv"]))
    check("single_blocks.1.norm.key_norm.scale", total["single_transformer_blocks.1.attn.norm_k.weight"])
    # by hand: the gradient of the mean squared error with respect to the last bias
    error = batch.velocity(transformer) - batch.target
    by_hand = (2 * error.sum(1) / error[0].numel()).square().mean(0)
    check("final_layer.linear.bias", by_hand.detach())


def run(*words: object) -> Any:
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Files of both kinds for two pocket models."""
    folder = tmp_path_factory.mktemp("statistics")
    files = {(name, kind): folder / f"{name}-{kind}.safetensors" for name in ("framed", "faint") for kind in ("fisher", "regmean")}
    for (name, kind), file in files.items():
        done = run(f"pocket/{name}", "--kind", kind, "--data", "pocket", "--examples", 12, "-o", file, "--json")
        assert done.exit_code == 0, done.output
    return files


def models(measured: dict[tuple[str, str], Path], kind: str) -> tuple[list[Any], list[Any]]:
    weights = [fs.model(f"pocket/{name}", name=name) for name in ("framed", "faint")]
    params = [fs.model(str(measured[name, kind]), name=f"{name}_{kind}", holds="param") for name in ("framed", "faint")]
    return weights, params


def test_files_say_what_they_are(measured: dict[tuple[str, str], Path]) -> None:
    with safe_open(measured["framed", "fisher"], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["fluxsmith.statistics"] == "fisher"
    assert metadata["fluxsmith.statistics.model"] == "pocket/framed"
    assert metadata["fluxsmith.statistics.data"] == "pocket, 12 examples, seed 0"


def test_regmean_of_pocket_models_beats_their_average_at_every_layer(measured: dict[tuple[str, str], Path]) -> None:
    """The sum of squared differences to both models' activations, on their own examples: tr((W - W_i) G_i (W - W_i)^T)."""
    weights, params = models(measured, "regmean")
    options: dict[str, Any] = {"layout": "bfl", "dtype": "fp32"}
    merged = fs.load_state_dict(METHODS["regmean"](*weights, grams=params, alpha=1.0), **options)
    average = fs.load_state_dict(fs.linear(*weights), **options)
    parents = [fs.load_state_dict(f"pocket/{name}", **options) for name in ("framed", "faint")]
    grams = [load_file(measured[name, "regmean"]) for name in ("framed", "faint")]

    def objective(tensors: dict[str, Tensor], key: str) -> float:
        errors = [(tensors[key] - parent[key]).double() for parent in parents]
        return sum(float(((e @ gram[key].double()) * e).sum()) for e, gram in zip(errors, grams, strict=True))

    before, after = ([objective(tensors, key) for key in grams[0]] for tensors in (average, merged))
    assert len(before) == 40
    assert all(new <= old * (1 + 1e-6) for new, old in zip(after, before, strict=True))
    assert sum(after) < 0.9 * sum(before)
    biases = [key for key in average if key not in grams[0]]
    assert biases
    assert all(torch.allclose(merged[key], average[key], atol=1e-6) for key in biases)


def test_fisher_of_pocket_models_stands_between_them(measured: dict[tuple[str, str], Path]) -> None:
    weights, params = models(measured, "fisher")
    merged = fs.load_state_dict(METHODS["fisher"](*weights, importance=params), layout="bfl", dtype="fp32")
    one, other = (fs.load_state_dict(f"pocket/{name}", layout="bfl", dtype="fp32") for name in ("framed", "faint"))
    importance = [load_file(measured[name, "fisher"]) for name in ("framed", "faint")]
    key = "double_blocks.0.img_attn.qkv.weight"
    f, g = (values[key].double() + 1e-12 for values in importance)
    assert torch.allclose(merged[key].double(), (f * one[key] + g * other[key]) / (f + g), atol=1e-5)
    slack = 1e-6
    for name, tensor in merged.items():
        assert (tensor >= torch.minimum(one[name], other[name]) - slack).all()
        assert (tensor <= torch.maximum(one[name], other[name]) + slack).all()


@pytest.mark.parametrize(("method", "option", "kind"), [("fisher", "importance", "fisher"), ("regmean", "grams", "regmean")])
def test_statistics_do_not_decide_the_type_of_the_result(
    measured: dict[tuple[str, str], Path], method: str, option: str, kind: str
) -> None:
    """The models are bf16, their statistics fp32: the result is bf16."""
    weights, params = models(measured, kind)
    merged = fs.load_state_dict(METHODS[method](*weights, **{option: params}))
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_grams_belong_to_all_parts_of_a_fused_tensor(measured: dict[tuple[str, str], Path]) -> None:
    """A number for `k` alone makes jobs of q, k and v apart; each takes the whole matrix of inputs."""
    from fluxsmith.recipes.schedules import Schedule
    from fluxsmith.recipes.selectors import Selector

    weights, params = models(measured, "regmean")
    options: dict[str, Any] = {"layout": "bfl", "dtype": "fp32"}
    apart = Schedule(1.0, ((Selector("k"), 0.5),))
    found = fs.load_state_dict(METHODS["regmean"](*weights, grams=params, alpha=apart), **options)
    half, full = (fs.load_state_dict(METHODS["regmean"](*weights, grams=params, alpha=a), **options) for a in (0.5, 1.0))
    key = "double_blocks.0.img_attn.qkv.weight"
    for i, expected in enumerate((full, half, full)):
        assert torch.allclose(found[key].chunk(3)[i], expected[key].chunk(3)[i], atol=1e-6)
    assert not torch.allclose(half[key], full[key], atol=1e-5)


def example_file(path: Path, **changes: Tensor | None) -> Path:
    found = pocket_examples("framed", 4)[0]
    tensors: dict[str, Tensor | None] = {
        "latents": found.latents, "prompt_embeds": found.prompt_embeds, "pooled": found.pooled, "timesteps": found.times, **changes,
    }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_examples_from_a_file(tmp_path: Path) -> None:
    noise = torch.randn(4, 16, 4)
    batches = examples_from_file(str(example_file(tmp_path / "x.safetensors", noise=noise)))
    clean = load_file(tmp_path / "x.safetensors")["latents"]
    time = batches[2].times
    assert len(batches) == 4
    assert torch.allclose(batches[2].latents, (1 - time) * clean[2:3] + time * noise[2:3], atol=1e-6)
    assert torch.allclose(batches[2].target, noise[2:3] - clean[2:3])
    done = run("pocket/framed", "--kind", "regmean", "--data", tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["examples"] == 4


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pooled": None}, "data.missing-tensor"),
        ({"timesteps": torch.rand(3)}, "data.wrong-shape"),
        ({"latents": torch.full((4, 16, 4), float("nan"))}, "data.wrong-shape"),
        ({"surplus": torch.rand(4)}, "data.unknown-tensor"),
        ({"latents": torch.rand(4, 15, 4)}, "data.missing-tensor"),
    ],
)
def test_bad_examples(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(FileError) as caught:
        examples_from_file(str(example_file(tmp_path / "bad.safetensors", **changes)))
    assert caught.value.code == code


def test_bad_calls_leave_no_file(tmp_path: Path) -> None:
    wide = example_file(tmp_path / "wide.safetensors", latents=torch.rand(4, 16, 8))
    target = tmp_path / "out.safetensors"
    cases = {
        "data.wrong-shape": ("pocket/framed", wide, target),
        "data.guidance": ("pocket/dev", example_file(tmp_path / "x.safetensors"), target),
        "usage.unknown-data": ("pocket/framed", "pocket/nobody", target),
        "usage.output": ("pocket/framed", "pocket", tmp_path / "out.bin"),
        "model.wrong-kind": (wide, wide, target),
    }
    for code, (model, data, output) in cases.items():
        done = run(model, "--kind", "regmean", "--data", data, "--examples", 2, "-o", output)
        assert isinstance(done.exception, FluxsmithError)
        assert done.exception.code == code
        assert not output.exists()
    target.write_bytes(b"mine")
    done = run("pocket/framed", "--kind", "regmean", "--data", "pocket", "--examples", 2, "-o", target)
    assert isinstance(done.exception, FluxsmithError)
    assert done.exception.code == "output.exists"
    assert target.read_bytes() == b"mine"

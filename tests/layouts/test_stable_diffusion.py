"""SD1.5, SDXL and SD3 against the stock classes, sd-mecha's configs and diffusers' own converters."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
import json
import re
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file
from sd_mecha.extensions import model_configs
from torch import Tensor

import fluxsmith as fs
from fluxsmith.engine.execution import Execution
from fluxsmith.engine.merging import merge as run
from fluxsmith.engine.plan import Job, Plan
from fluxsmith.errors import IncompatibleError, Interrupted, UsageError
from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.views import Extent, View
from fluxsmith.layouts import TABLES, Table, table_of
from fluxsmith.layouts.binding import solve_dims
from fluxsmith.layouts.detection import detect
from fluxsmith.layouts.pipeline_configs import component_configs
from fluxsmith.layouts.table import stored_shapes
from fluxsmith.recipes.loading import load_recipe
from fluxsmith.recipes.recipe import Recipe
from support.cli_runs import run_cli
from support.tiny_pipelines import PIPELINES, save_pipeline, true_shapes


def table_for(name: str) -> Table:
    table = table_of(PIPELINES[name].family)
    assert table is not None
    return table


def with_text_model(shapes: dict[str, tuple[int, ...]], family: str) -> dict[str, tuple[int, ...]]:
    """Names as on the Hub: transformers 5 has no `text_model.` in a text encoder without projection."""
    if family not in ("sd15", "sdxl"):
        return shapes
    return {re.sub(r"^text_encoder/(?!text_model)", "text_encoder/text_model.", key): shape for key, shape in shapes.items()}


@pytest.mark.parametrize("name", PIPELINES)
def test_names_and_shapes_of_published_models_are_those_of_the_stock_classes(name: str) -> None:
    table, shapes = table_for(name), with_text_model(true_shapes(PIPELINES[name]), PIPELINES[name].family)
    tensors = table.expand(solve_dims(table, "diffusers", shapes, name))
    assert stored_shapes(tensors, "diffusers") == shapes


@pytest.mark.parametrize("name", [name for name, pipeline in PIPELINES.items() if pipeline.mecha])
def test_names_and_shapes_of_all_in_one_files_are_those_of_sd_mecha(name: str) -> None:
    table, layout = table_for(name), PIPELINES[name].original
    config = model_configs.resolve(PIPELINES[name].mecha)
    every = {key: tuple(meta.shape) for key, meta in config.keys().items()}
    dropped = {key for key in every for pattern, _ in table.drops if re.search(pattern, key)}
    shapes = {key: shape for key, shape in every.items() if key not in dropped and key not in table.marks}
    tensors = table.expand(solve_dims(table, layout, shapes, name))
    assert stored_shapes(tensors, layout) == shapes
    assert not any(key.endswith((".weight", ".bias")) for key in dropped)


@pytest.mark.parametrize(("name", "blocks"), [("sd15", "sd1-supermerger_blocks"), ("sdxl", "sdxl-supermerger_blocks")])
def test_blocks_are_those_of_merge_block_weighted(name: str, blocks: str) -> None:
    """Every tensor stands in the block that sd-mecha's conversion from MBW weights gives it."""
    from sd_mecha.extensions.builtin.model_configs.convert_sd1_blocks import convert_sd1_blocks_to_ldm
    from sd_mecha.extensions.builtin.model_configs.convert_sdxl_blocks import convert_sdxl_blocks_to_sgm

    convert = {"sd15": convert_sd1_blocks_to_ldm, "sdxl": convert_sdxl_blocks_to_sgm}[name]
    table, layout = table_for(name), PIPELINES[name].original
    relations = convert.build_key_map(
        [model_configs.resolve(blocks)], {}, model_configs.resolve(f"{'sd1' if name == 'sd15' else name}-{layout}")
    )
    found = {key: relation.clauses[0].by_param["blocks"][0] for key, relation in relations.simple_map.items()}
    spec = table.expand(solve_dims(table, "diffusers", with_text_model(true_shapes(PIPELINES[name]), name), name))
    words = {"in": "IN", "mid": "M", "out": "OUT"}
    for tensor in spec:
        if tensor.component == "unet":
            kind, _, number = (tensor.block or "").partition(".")
            expected = f"{words[kind]}{int(number):02}" if tensor.block else "BASE"
            assert found[tensor.pieces[layout][0].name] == expected, tensor.name


def converted(name: str, file: dict[str, Tensor]) -> dict[str, Tensor]:
    """An all-in-one file in diffusers' names by diffusers' own functions."""
    pipeline = PIPELINES[name]
    configs = {part: build().config for part, build in pipeline.tiny.items()}
    found: dict[str, Tensor] = {}

    def take(part: str, state: dict[str, Tensor]) -> None:
        found.update({f"{part}/{key}": tensor for key, tensor in state.items()})

    take("vae", converters.convert_ldm_vae_checkpoint(dict(file), configs["vae"]))
    if pipeline.family == "sd3":
        own = {key: t for key, t in file.items() if key.startswith("model.diffusion_model.")}
        take("transformer", converters.convert_sd3_transformer_checkpoint_to_diffusers(own))
        for part, encoder in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
            before = f"text_encoders.{encoder}.transformer."
            take(part, {key.removeprefix(before): t for key, t in file.items() if key.startswith(before)})
        return found
    take("unet", converters.convert_ldm_unet_checkpoint(dict(file), configs["unet"]))
    if pipeline.family == "sd15":
        take("text_encoder", converters.convert_ldm_clip_checkpoint(dict(file)))
        return found
    clip_l = converters.convert_ldm_clip_checkpoint(dict(file), remove_prefix="conditioner.embedders.0.transformer.")
    take("text_encoder", clip_l)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=12))
    two = {key: t for key, t in file.items() if key.startswith("conditioner.embedders.1.")}
    take("text_encoder_2", converters.convert_open_clip_checkpoint(model, two, prefix="conditioner.embedders.1.model."))
    return found


@pytest.fixture(scope="module", params=PIPELINES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Tensor], dict[str, Tensor]]:
    """Two pipelines of a family as folders `a` and `b`, and `a` as one file in the original layout."""
    name: str = request.param
    root = tmp_path_factory.mktemp(re.sub(r"\W", "", name))
    one, two = (save_pipeline(PIPELINES[name], root / folder, seed) for folder, seed in (("a", 1), ("b", 2)))
    fs.merge(str(root / "a"), root / "a.safetensors", layout=PIPELINES[name].original)
    return name, root, with_names(one, name), with_names(two, name)


def with_names(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    names = with_text_model({key: tuple(t.shape) for key, t in tensors.items()}, PIPELINES[name].family)
    return dict(zip(names, tensors.values(), strict=True))


def pipeline_tensors(folder: Path) -> dict[str, Tensor]:
    return {f"{file.parent.name}/{key}": t for file in sorted(folder.glob("*/*.safetensors")) for key, t in load_file(file).items()}


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the last place: b - a is rounded before it is halved. Values are drawn from N(0, 1)."""
    return torch.allclose(a, b, rtol=0, atol=1e-6)


Pair = tuple[str, Path, dict[str, Tensor], dict[str, Tensor]]


def test_all_in_one_files_mean_what_diffusers_converters_say(pair: Pair) -> None:
    name, root, one, _ = pair
    back = converted(name, load_file(root / "a.safetensors"))
    assert back.keys() == one.keys()
    for key, tensor in one.items():
        assert torch.equal(back[key].reshape(tensor.shape), tensor), key


def test_an_all_in_one_file_and_a_pipeline_are_averaged_in_either_layout(pair: Pair, tmp_path: Path) -> None:
    """The file of `a` with the folder of `b`, written as a folder and as a file: every value is the mean, all are there."""
    name, root, one, two = pair
    mean = {key: (one[key].float() + two[key].float()) / 2 for key in one}
    wish = fs.weighted_sum(str(root / "a.safetensors"), str(root / "b"), alpha=0.5)
    plan = fs.plan(wish)
    assert plan.family == PIPELINES[name].family
    fs.merge(wish, tmp_path / "folder", layout="diffusers", dtype="fp32")
    found = pipeline_tensors(tmp_path / "folder")
    assert found.keys() == mean.keys()
    assert all(close(found[key], mean[key]) for key in mean)
    assert json.loads((tmp_path / "folder" / "model_index.json").read_text())["_class_name"] == PIPELINES[name].kind
    assert (tmp_path / "folder" / "tokenizer" / "merges.txt").exists()
    fs.merge(wish, tmp_path / "file.safetensors", dtype="fp32")
    back = converted(name, load_file(tmp_path / "file.safetensors"))
    assert all(close(back[key].reshape(mean[key].shape), mean[key]) for key in mean)


def test_a_pipeline_that_we_wrote_is_loaded_by_the_stock_classes(pair: Pair, tmp_path: Path) -> None:
    name, root, one, _ = pair
    fs.merge(str(root / "a"), tmp_path / "o", shard_size="40KB")
    for part, build in PIPELINES[name].tiny.items():
        model = type(build()).from_pretrained(tmp_path / "o" / part)  # pyright: ignore[reportAttributeAccessIssue]
        state = with_names({f"{part}/{key}": tensor for key, tensor in model.state_dict().items()}, name)
        for key in (key for key in one if key.startswith(f"{part}/")):
            assert torch.equal(state[key].to(torch.bfloat16), one[key]), key


def test_the_denoiser_alone_in_either_layout(pair: Pair, tmp_path: Path) -> None:
    """`components` limits the file; the result, and a folder that holds it alone, merge with each other."""
    name, root, one, two = pair
    part = next(iter(PIPELINES[name].tiny))
    whole = fs.model(str(root / "a.safetensors"), name="a", components=[part])
    fs.merge(whole, tmp_path / "alone.safetensors")
    assert all(key.startswith("model.diffusion_model.") for key in load_file(tmp_path / "alone.safetensors"))
    fs.merge(
        fs.weighted_sum(str(tmp_path / "alone.safetensors"), str(root / "b" / part), alpha=0.5),
        tmp_path / "d",
        layout="diffusers",
        dtype="fp32",
    )
    found = load_file(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    assert {f"{part}/{key}" for key in found} == {key for key in one if key.startswith(f"{part}/")}
    assert all(close(t, (one[f"{part}/{key}"].float() + two[f"{part}/{key}"].float()) / 2) for key, t in found.items())


def test_selectors_and_ramps_follow_the_blocks(pair: Pair, tmp_path: Path) -> None:
    """A range of blocks, a component and a ramp: numbers go where they are meant to go."""
    name, root, one, two = pair
    kind = "joint" if PIPELINES[name].family == "sd3" else "in"
    (tmp_path / "r.yaml").write_text(
        f"fluxsmith: 1\nmodels: {{a: {root}/a.safetensors, b: {root}/b}}\nmerge:\n  method: weighted_sum\n  inputs: [a, b]\n"
        f"  alpha: {{default: 0, {kind}.1-2: 1, vae: 1, clip_l.1: 1}}\n"
    )
    fs.merge(load_recipe(tmp_path / "r.yaml"), tmp_path / "o", layout="diffusers")
    second = {
        "sd3": ("transformer/transformer_blocks.1.", "transformer/transformer_blocks.2."),
    }.get(PIPELINES[name].family, ("unet/down_blocks.0.resnets.", "unet/down_blocks.0.attentions."))
    second += ("vae/", "text_encoder/text_model.encoder.layers.1.")
    for key, tensor in pipeline_tensors(tmp_path / "o").items():
        assert torch.equal(tensor, (two if key.startswith(second) else one)[key]), key


def test_a_pipeline_does_not_fit_into_one_file(pair: Pair, tmp_path: Path) -> None:
    _, root, _, _ = pair
    with pytest.raises(UsageError) as caught:
        fs.plan(str(root / "a"), output=tmp_path / "x.safetensors")
    assert caught.value.code == "usage.pipeline-in-a-file"


def test_incomplete_components_are_named(pair: Pair, tmp_path: Path) -> None:
    """A VAE without one tensor is refused by that key; a file whose VAE is absent is told from one that has it."""
    _, root, _, _ = pair
    tensors = load_file(root / "a.safetensors")
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    save_file({k: t for k, t in tensors.items() if k != key}, tmp_path / "m.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(str(tmp_path / "m.safetensors"))
    assert (caught.value.code, key in caught.value.render()) == ("model.missing-keys", True)
    save_file({k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}, tmp_path / "n.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        fs.plan(fs.weighted_sum(str(root / "a.safetensors"), str(tmp_path / "n.safetensors")))
    assert caught.value.code == "model.missing-tensor"


def test_keys_that_are_no_weights_are_dropped_by_name(tmp_path: Path) -> None:
    save_pipeline(PIPELINES["sdxl"], tmp_path / "a", 1)
    fs.merge(str(tmp_path / "a"), tmp_path / "a.safetensors", layout="sgm")
    extra = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(7)[None],
        "conditioner.embedders.1.model.logit_scale": torch.ones(()), "v_pred": torch.zeros(0, dtype=torch.int64),
    }  # fmt: skip
    save_file({**load_file(tmp_path / "a.safetensors"), **extra}, tmp_path / "m.safetensors")
    plan = fs.plan(str(tmp_path / "m.safetensors"))
    assert plan.inputs[0].outcome["dropped (position numbers, which loaders make anew)"] == 1
    fs.merge(str(tmp_path / "m.safetensors"), tmp_path / "o.safetensors")
    found = load_file(tmp_path / "o.safetensors")
    assert "v_pred" in found, "what the model predicts must not get lost"
    assert found.keys() == load_file(tmp_path / "m.safetensors").keys() - (extra.keys() - {"v_pred"})


def test_the_transposed_projection_is_exact_in_a_measured_merge(tmp_path: Path) -> None:
    """SDXL's text_projection through TIES, from two layouts to two: the same values, one the transpose of the other."""
    one, two = (save_pipeline(PIPELINES["sdxl"], tmp_path / folder, seed) for folder, seed in (("a", 1), ("b", 2)))
    fs.merge(str(tmp_path / "a"), tmp_path / "a.safetensors", layout="sgm")
    key = "text_encoder_2/text_projection.weight"
    assert torch.equal(load_file(tmp_path / "a.safetensors")["conditioner.embedders.1.model.text_projection"], one[key].T)
    a, b = fs.model(str(tmp_path / "a.safetensors"), name="a"), fs.model(str(tmp_path / "b"), name="b")
    wish = fs.ties(a, b, density=0.3)
    fs.merge(wish, tmp_path / "d", layout="diffusers")
    fs.merge(wish, tmp_path / "s.safetensors", layout="sgm")
    folder, file = (
        pipeline_tensors(tmp_path / "d")[key],
        load_file(tmp_path / "s.safetensors")["conditioner.embedders.1.model.text_projection"],
    )
    assert torch.equal(folder, file.T)
    assert not torch.equal(folder, one[key])
    assert not torch.equal(folder, two[key])


def test_families_have_different_names() -> None:
    assert len({table.family for table in TABLES}) == len(TABLES)


def test_force_replaces_a_pipeline_but_not_an_input(tmp_path: Path) -> None:
    save_pipeline(PIPELINES["sd15"], tmp_path / "a", 1)
    fs.merge(str(tmp_path / "a"), tmp_path / "o")
    fs.merge(str(tmp_path / "a"), tmp_path / "o", force=True)
    assert (tmp_path / "o" / "vae" / "config.json").exists()
    with pytest.raises(IncompatibleError) as caught:
        fs.merge(str(tmp_path / "a"), tmp_path / "a", force=True)
    assert caught.value.code == "output.is-input"


@pytest.mark.parametrize("name", PIPELINES)
def test_configs_made_from_shapes_build_the_published_models(name: str) -> None:
    """The stock class with our config has the tensors of the published model; what shapes do not show is compared."""
    table, pipeline = table_for(name), PIPELINES[name]
    shapes = with_text_model(true_shapes(pipeline), pipeline.family)
    configs = component_configs(pipeline.family, solve_dims(table, "diffusers", shapes, name), table.components)
    assert configs.keys() == pipeline.true.keys()
    built: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for part, config in configs.items():
            stock = pipeline.true[part]()
            fields = dict(config)
            if "model_type" in fields:
                kind = type(stock.config)  # pyright: ignore[reportUnknownArgumentType]
                model = type(stock)(kind(**fields))
            else:
                model = type(stock).from_config(fields)
                assert isinstance(model, type(stock))
                heads = ("attention_head_dim", "norm_num_groups", "num_attention_heads")
                assert [plain(model.config.get(h)) for h in heads] == [plain(stock.config.get(h)) for h in heads]
            built |= {f"{part}/{key}": tuple(t.shape) for key, t in model.state_dict().items() if "embed_tokens" not in key}
    assert with_text_model(built, pipeline.family) == shapes


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


def test_a_pipeline_from_a_file_alone_has_configs(pair: Pair, tmp_path: Path) -> None:
    """No input is a pipeline: every component is still loaded by its stock class, with all values."""
    name, root, one, _ = pair
    fs.merge(str(root / "a.safetensors"), tmp_path / "o", layout="diffusers")
    for part, build in PIPELINES[name].tiny.items():
        model = type(build()).from_pretrained(tmp_path / "o" / part)
        state = with_names({f"{part}/{key}": tensor for key, tensor in model.state_dict().items()}, name)
        for key in (key for key in one if key.startswith(f"{part}/")):
            assert torch.equal(state[key].to(torch.bfloat16), one[key]), key


def test_components_of_two_models_are_put_together(pair: Pair, tmp_path: Path) -> None:
    """Everything of one but its VAE, and the VAE of the other: the change of a VAE that users ask for."""
    name, root, one, two = pair
    a, b = fs.model(str(root / "a.safetensors"), name="a"), fs.model(str(root / "b"), name="b")
    fs.merge(fs.omit(a, "vae") | fs.component(b, "vae"), tmp_path / "o", layout="diffusers")
    for key, tensor in pipeline_tensors(tmp_path / "o").items():
        assert torch.equal(tensor, (two if key.startswith("vae/") else one)[key]), (name, key)


def test_an_interrupted_pipeline_is_finished_by_resume(tmp_path: Path) -> None:
    """What is kept lies in folders of components; it is used, and the result is that of an uninterrupted run."""
    save_pipeline(PIPELINES["sd15"], tmp_path / "a", 1)
    wish = Recipe(fs.weighted_sum(fs.model(str(tmp_path / "a"), name="a"), fs.model(str(tmp_path / "a"), name="b"), alpha=0.3))

    class Stopping:
        """Stops after some tiles, as Ctrl-C does."""

        done = 0
        kept = 0

        def started(self, plan: Plan, execution: Execution, done_bytes: int) -> None:
            self.execution, self.kept = execution, done_bytes

        def advanced(self, count: int, job: Job) -> None:
            self.done += 1
            if self.done == 40:
                self.execution.stop()

    with pytest.raises(Interrupted):
        run(wish, tmp_path / "o", observer=Stopping())
    again = Stopping()
    again.done = 1000
    run(wish, tmp_path / "o", resume=True, observer=again)
    run(wish, tmp_path / "whole")
    assert again.kept > 0
    resumed, whole = pipeline_tensors(tmp_path / "o"), pipeline_tensors(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_pipeline_is_reproduced_only_from_the_same_components(tmp_path: Path) -> None:
    """Files of one name in several folders are told apart: another text encoder is noticed."""
    for seed, name in enumerate("ab"):
        save_pipeline(PIPELINES["sdxl"], tmp_path / name, seed)
    fs.merge(fs.weighted_sum(str(tmp_path / "a"), str(tmp_path / "b"), alpha=0.5), tmp_path / "o")
    run_again = ("reproduce", tmp_path / "o", "-o", tmp_path / "again")
    assert "byte for byte" in (ended := run_cli(*run_again)).err + ended.out
    encoder = load_file(tmp_path / "a" / "text_encoder" / "model.safetensors")
    save_file({key: tensor + 1 for key, tensor in encoder.items()}, tmp_path / "a" / "text_encoder" / "model.safetensors")
    changed = run_cli("reproduce", tmp_path / "o", "-o", tmp_path / "other")
    assert "error[reproduce.other-input]" in changed.err
    assert "text_encoder/model.safetensors" in changed.err


def checkpoint_of_shapes(shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of which there are only headers."""
    return Checkpoint("x", (), {key: View(shape, (Extent("x", 0, prod(shape), "BF16"),)) for key, shape in shapes.items()})


@pytest.mark.parametrize("name", PIPELINES)
def test_published_models_are_told_by_every_key(name: str) -> None:
    """As a pipeline, as one file, and the denoiser alone in both: the family with all its components and score 1."""
    table, pipeline = table_for(name), PIPELINES[name]
    shapes = with_text_model(true_shapes(pipeline), pipeline.family)
    spec = table.expand(solve_dims(table, "diffusers", shapes, name))
    first, one_file = table.components[0], stored_shapes(spec, pipeline.original)
    whole = {"diffusers": shapes, pipeline.original: one_file}
    for layout, own in whole.items():
        found = detect(checkpoint_of_shapes(own), TABLES)
        assert found is not None
        assert (found.table.family, found.layout, found.score, tuple(found.prefixes)) == (pipeline.family, layout, 1.0, table.components)
        prefix = found.prefixes[first]
        alone = detect(checkpoint_of_shapes({k.removeprefix(prefix): s for k, s in own.items() if k.startswith(prefix)}), TABLES)
        assert alone is not None
        assert (alone.table.family, alone.layout, alone.prefixes) == (pipeline.family, layout, {first: ""})


def test_names_of_older_files_are_read(tmp_path: Path) -> None:
    """`text_model.` came later to SD1.5's text encoder, and diffusers called the VAE's projections otherwise until 0.18."""
    save_pipeline(PIPELINES["sd15"], tmp_path / "a", 1)
    fs.merge(str(tmp_path / "a"), tmp_path / "a.safetensors", layout="ldm")
    file = load_file(tmp_path / "a.safetensors")
    save_file({key.replace(".text_model.", "."): tensor for key, tensor in file.items()}, tmp_path / "old.safetensors")
    fs.merge(str(tmp_path / "old.safetensors"), tmp_path / "new.safetensors")
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(tmp_path / "a" / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in words.items():
        vae = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensor for key, tensor in vae.items()}
    save_file(vae, tmp_path / "a" / "vae" / "diffusion_pytorch_model.safetensors")
    fs.merge(str(tmp_path / "a"), tmp_path / "again.safetensors", layout="ldm")
    for name in ("new", "again"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == file.keys()
        assert all(torch.equal(found[key], file[key]) for key in file)

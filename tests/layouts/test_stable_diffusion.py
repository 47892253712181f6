"""The tables of SD1.5, SDXL and SD3 against the stock classes and sd-mecha's configs."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
import re
from math import prod

import pytest
import torch
from sd_mecha.extensions import model_configs

from fluxsmith.io.checkpoint import Checkpoint
from fluxsmith.io.views import Extent, View
from fluxsmith.layouts import TABLES, Table, table_of
from fluxsmith.layouts.binding import solve_dims
from fluxsmith.layouts.detection import detect
from fluxsmith.layouts.pipeline_configs import component_configs
from fluxsmith.layouts.table import stored_shapes
from support.tiny_pipelines import PIPELINES, true_shapes, with_text_model


def table_for(name: str) -> Table:
    table = table_of(PIPELINES[name].family)
    assert table is not None
    return table


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


def test_families_have_different_names() -> None:
    assert len({table.family for table in TABLES}) == len(TABLES)


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

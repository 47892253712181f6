"""Adapters of Stable Diffusion, FLUX.2 and Chroma by real producers: text encoders, convolutions and every key."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeArgument=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from adapters.peft_containers import Made, canonical, deltas_of, diffusers_pipeline, draw, kohya_file, peft_folder, rename, saved_pipeline
from fluxsmith.adapters.reading.opening import open_adapter
from fluxsmith.adapters.tensors import read_values
from fluxsmith.io.references import open_reference
from fluxsmith.layouts import Bound, known_tables
from fluxsmith.layouts.detection import open_model
from support.tiny_flux import make_transformer
from support.tiny_pipelines import PIPELINES, save_pipeline

UNET = (
    r"(mid_block|up_blocks\.1)\..*(to_q|to_out\.0|ff\.net\.0\.proj|proj_in|time_emb_proj|conv1|conv_shortcut|upsamplers\.0\.conv)|conv_in"
)
TEXT = ["q_proj", "v_proj", "fc1"]
SD3 = ["attn.to_q", "add_v_proj", "ff.net.2", "norm1_context.linear", "norm_out.linear", "proj_out", "pos_embed.proj"]


class Pipeline:
    """A saved tiny pipeline, its modules with their weights, and what fluxsmith makes of it."""

    def __init__(self, name: str, root: Path) -> None:
        self.tiny = PIPELINES[name]
        self.folder = root / name.replace(" ", "-")
        self.tensors = save_pipeline(self.tiny, self.folder, seed=3)
        self.base: Bound = open_model(open_reference(str(self.folder), download=False), known_tables())
        self.weights = {name: read_values(view) for name, view in self.base.views.items()}

    def module(self, part: str) -> nn.Module:
        model = self.tiny.tiny[part]()
        model.load_state_dict({key.removeprefix(f"{part}/"): tensor for key, tensor in self.tensors.items() if key.startswith(f"{part}/")})
        return model


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    made: dict[str, Pipeline] = {}
    root = tmp_path_factory.mktemp("pipelines")

    def get(name: str) -> Pipeline:
        if name not in made:
            made[name] = Pipeline(name, root)
        return made[name]

    return get


def _in_part(made: Made, part: str) -> Made:
    return Made(made.path, {_stored(f"{part}/{name}"): delta for name, delta in made.deltas.items()})


def _stored(name: str) -> str:
    """transformers 5 leaves `text_model.` out of a text encoder without projection."""
    return re.sub(r"^(text_encoder/)(?=encoder\.|embeddings\.|final_layer_norm)", r"\1text_model.", name)


def _check(made: Made, base: Bound, weights: Mapping[str, Tensor], dialect: str) -> None:
    checkpoint = open_reference(str(made.path), download=False)
    adapter = open_adapter(checkpoint, base=base)
    assert adapter.dialect == dialect
    assert {key for module in adapter.modules for key in module.sources} == set(checkpoint.tensors)
    expected = canonical(base.spec, "diffusers", made.deltas)
    found = deltas_of(adapter, base, weights)
    assert found.keys() == expected.keys()
    for tensor, delta in expected.items():
        assert torch.linalg.vector_norm(found[tensor] - delta) <= 1e-6 * torch.linalg.vector_norm(delta), tensor


def _peft(kind: str, part: str, modules: Any, **fields: Any) -> Callable[[Pipeline, Path], Made]:
    def make(pipeline: Pipeline, root: Path) -> Made:
        import peft

        config = getattr(peft, f"{kind}Config")(**{"target_modules": modules, **fields})
        return _in_part(peft_folder(pipeline.module(part), config, root / "adapter"), part)

    return make


def _saved(parts: Mapping[str, Any]) -> Callable[[Pipeline, Path], Made]:
    """save_lora_weights of the pipeline's own class, with a rank of its own for every part."""

    def make(pipeline: Pipeline, root: Path) -> Made:
        return saved_pipeline(pipeline.tiny.kind, {part: pipeline.module(part) for part in parts}, parts, root / "adapter", _stored)

    return make


def _kohya(*parts: str, **options: Any) -> Callable[[Pipeline, Path], Made]:
    def make(pipeline: Pipeline, root: Path) -> Made:
        return kohya_file({part: pipeline.module(part) for part in parts}, root / "adapter.safetensors", _stored, **options)

    return make


def _sgm(pipeline: Pipeline, root: Path) -> Made:
    """sd-scripts names SDXL's U-Net as in the original code; diffusers' own reading of these names says that they are right."""
    from diffusers import StableDiffusionXLPipeline
    from safetensors.torch import load_file

    made = _kohya("unet", algo="lora", **KOHYA)(pipeline, root)
    names: dict[str, str] = {}
    for tensor in pipeline.base.spec.values():
        for piece, original in zip(tensor.pieces["diffusers"], tensor.pieces["sgm"], strict=False):
            if piece.name.startswith("unet/"):
                old = original.name.removeprefix("model.diffusion_model.").rpartition(".")[0]
                names[piece.name.removeprefix("unet/").rpartition(".")[0].replace(".", "_")] = old.replace(".", "_")

    def change(key: str) -> str:
        module, _, role = key.removeprefix("lora_unet_").partition(".")
        return f"lora_unet_{names[module]}.{role}"

    changed = rename(made, change)
    state = {key: tensor for key, tensor in load_file(changed.path).items() if "transformer_blocks" in key}
    read = cast(Any, StableDiffusionXLPipeline.lora_state_dict(dict(state), unet_config=pipeline.module("unet").config))[0]
    assert len(read) == sum(key.endswith("lora_down.weight") for key in state) * 2
    for key, tensor in read.items():
        key = re.sub(r"\.processor\.to_(\w+)_lora\.", r".to_\1.lora.", key).replace(".to_out.lora", ".to_out.0.lora")
        stem, role = re.fullmatch(r"unet\.(.+)\.lora\.(down|up)\.weight", key).groups()
        assert torch.equal(tensor, state[change(f"lora_unet_{stem.replace('.', '_')}.lora_{role}.weight")])
    return changed


def _old_names(pipeline: Pipeline, root: Path) -> Made:
    """diffusers before PEFT: no header, so that the scale is 1; processors of attention, `lora_linear_layer` of text encoders."""
    made = _saved({"unet": r".*(to_q|to_out\.0)", "text_encoder": ["q_proj", "fc1"]})(pipeline, root)
    factors = {"A": "down", "B": "up"}

    def old(key: str) -> str:
        key = re.sub(r"\.(to_q|to_out)(?:\.0)?\.lora_([AB])", lambda m: f".processor.{m[1]}_lora.{factors[m[2]]}", key)
        key = re.sub(r"\.self_attn\.q_proj\.lora_([AB])", lambda m: f".self_attn.to_q_lora.{factors[m[1]]}", key)
        return re.sub(r"\.lora_([AB])", lambda m: f".lora_linear_layer.{factors[m[1]]}", key)

    ranks = {"unet": 2 / 5, "text_encoder": 3 / 6}
    deltas = {name: delta * ranks[name.partition("/")[0]] for name, delta in made.deltas.items()}
    return Made(rename(made, old).path, deltas)


LORA = {"r": 3, "lora_alpha": 5}
SMALL = {"r": 2, "alpha": 5}
KOHYA = {"linear_dim": 3, "linear_alpha": 5.0, "conv_dim": 2, "conv_alpha": 3.0}
CONTAINERS: dict[str, tuple[str, str, Callable[[Pipeline, Path], Made]]] = {
    "sd15 peft lora": ("sd15", "peft", _peft("Lora", "unet", UNET, **LORA)),
    "sd15 peft dora": ("sd15", "peft", _peft("Lora", "unet", r"mid_block.*(to_q|conv1)", use_dora=True, **LORA)),
    "sd15 peft loha": ("sd15", "peft", _peft("LoHa", "unet", UNET, **SMALL)),
    "sd15 peft loha with cores": ("sd15", "peft", _peft("LoHa", "unet", UNET, use_effective_conv2d=True, **SMALL)),
    "sd15 peft lokr": ("sd15", "peft", _peft("LoKr", "unet", UNET, decompose_both=True, decompose_factor=4, **SMALL)),
    "sd15 peft lokr with cores": ("sd15", "peft", _peft("LoKr", "unet", UNET, use_effective_conv2d=True, **SMALL)),
    "sd15 peft oft": ("sd15", "peft", _peft("OFT", "unet", r"mid_block.*(to_q|ff\.net\.0\.proj|conv1)", oft_block_size=4)),
    "sd15 peft ia3": ("sd15", "peft", _peft("IA3", "unet", r"mid_block.*(to_q|conv1|conv2)", feedforward_modules=r".*conv2")),
    "sd15 peft text": ("sd15", "peft", _peft("Lora", "text_encoder", TEXT, **LORA)),
    "sd15 diffusers": ("sd15", "diffusers", _saved({"unet": UNET, "text_encoder": TEXT})),
    "sd15 diffusers old names": ("sd15", "diffusers", _old_names),
    "sdxl diffusers": ("sdxl", "diffusers", _saved({"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT})),
    "sd3 diffusers": ("sd3 medium", "diffusers", _saved({"transformer": SD3, "text_encoder": TEXT, "text_encoder_2": TEXT})),
    "sd3.5 peft": ("sd3.5 medium", "peft", _peft("Lora", "transformer", [*SD3, "attn2.to_k"], **LORA)),
    "sd15 kohya": ("sd15", "kohya", _kohya("text_encoder", "unet", algo="lora", **KOHYA)),
    "sd15 kohya with cores": ("sd15", "kohya", _kohya("text_encoder", "unet", algo="lora", use_tucker=True, **KOHYA)),
    "sd15 kohya loha": ("sd15", "kohya", _kohya("unet", algo="loha", use_tucker=True, **KOHYA)),
    "sd15 kohya lokr": ("sd15", "kohya", _kohya("unet", algo="lokr", factor=4, use_tucker=True, **KOHYA)),
    "sd15 kohya dora": ("sd15", "kohya", _kohya("unet", algo="lora", dora_wd=True, **KOHYA)),
    "sd15 kohya with norms": ("sd15", "kohya", _kohya("unet", algo="lora", train_norm=True, **KOHYA)),
    "sdxl kohya with original names": ("sdxl", "kohya", _sgm),
    "sdxl kohya": ("sdxl", "kohya", _kohya("text_encoder", "text_encoder_2", "unet", algo="lora", **KOHYA)),
}


TINY: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 32,
}  # fmt: skip
FLUXES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "flux2": (
        "Flux2Transformer2DModel",
        {**TINY, "timestep_guidance_channels": 16, "axes_dims_rope": (8, 8, 4, 4)},
        ["to_q", "add_k_proj", "to_qkv_mlp_proj", "ff.linear_in", "single_stream_modulation.linear", "norm_out.linear", "x_embedder"],
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {
            **TINY, "axes_dims_rope": (8, 8, 8), "approximator_num_channels": 12, "approximator_hidden_dim": 20, "approximator_layers": 2,
        },
        ["attn.to_q", "proj_mlp", "ff_context.net.2", "in_proj", "layers.0.linear_1", "context_embedder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FLUXES)
@pytest.mark.parametrize("kind", ["peft", "diffusers"])
def test_flux2_and_chroma(family: str, kind: str, tmp_path: Path) -> None:
    import diffusers
    from peft import LoraConfig

    name, fields, modules = FLUXES[family]
    model = getattr(diffusers, name)(**fields)
    draw(model.parameters())
    model.save_pretrained(tmp_path / "model")
    base = open_model(open_reference(str(tmp_path / "model"), download=False), known_tables())
    assert base.family == family
    config = LoraConfig(r=3, lora_alpha=5, target_modules=modules)
    make = peft_folder if kind == "peft" else diffusers_pipeline
    made = make(model, config, tmp_path / "adapter")
    _check(made, base, {name: read_values(view) for name, view in base.views.items()}, kind)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_key_is_used_and_every_delta_is_the_producers(name: str, pipelines: Callable[[str], Pipeline], tmp_path: Path) -> None:
    family, dialect, make = CONTAINERS[name]
    pipeline = pipelines(family)
    _check(make(pipeline, tmp_path), pipeline.base, pipeline.weights, dialect)


def test_the_text_encoder_of_flux(pipelines: Callable[[str], Pipeline], tmp_path: Path) -> None:
    """The scale of every part is that of its own fields in the header; T5 is told by its names."""
    encoders = pipelines("sd3 medium")
    parts = {"transformer": make_transformer(1), "text_encoder": encoders.module("text_encoder")}
    made = saved_pipeline("FluxPipeline", parts, {"transformer": ["attn.to_q"], "text_encoder": TEXT}, tmp_path / "adapter", str)
    t5 = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_"
    more = {f"{t5}A.weight": torch.ones(2, 24), f"{t5}B.weight": torch.ones(128, 2)}
    header = open_reference(str(made.path), download=False).metadata
    adapter = open_adapter(open_reference(str(rename(made, str, more=more, metadata=header).path), download=False))
    assert (adapter.family, adapter.dialect) == ("flux1", "diffusers")
    scales = {module.target.component: module.settings["scale"] for module in adapter.modules}
    assert scales == {"transformer": 5 / 2, "clip_l": 6 / 3, "t5": 1}
    assert sum(module.target.component == "clip_l" for module in adapter.modules) == 2 * len(TEXT)
    assert {name for module in adapter.modules for name in module.sources} == set(adapter.checkpoint.tensors)

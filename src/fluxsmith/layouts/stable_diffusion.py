"""Stable Diffusion 1.5 and SDXL: a U-Net, one or two CLIP text encoders and a VAE, in one file or in a pipeline folder.

Layouts: `ldm` and `sgm` are the all-in-one files of the original code (CompVis and Stability AI, read by ComfyUI, A1111
and others), `diffusers` is a pipeline folder, whose keys stand here after the name of their folder (`unet/conv_in...`).
A U-Net alone is read in either layout. Canonical names are the original ones after the component's name.
"""

from collections.abc import Sequence

from fluxsmith.layouts.autoencoder import autoencoder_rows
from fluxsmith.layouts.components import Component, rows_of
from fluxsmith.layouts.table import Row, Table
from fluxsmith.layouts.text_encoders import clip_rows, openclip_rows
from fluxsmith.layouts.unet import UNet

__all__ = ["DROPS", "SD15", "SDXL", "VAE_ALIASES", "pipeline_table"]

#: Keys of all-in-one files that are no weights.
DROPS = (
    (r"position_ids$", "position numbers, which loaders make anew"),
    (r"(^|\.)logit_scale$", "a scale that only CLIP's own training uses"),
    (
        r"^(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus\w*|posterior_\w+|denoiser\.sigmas|model\.model_sampling\.sigmas)$",
        "the noise schedule",
    ),
    (r"^model_ema\.", "the moving average of a training run"),
    (r"encoder\.embed_tokens\.weight$", "a second name of shared.weight"),
)

#: What diffusers called the projections of the VAE's attention until version 0.18.
VAE_ALIASES = {
    f"mid_block.attentions.0.{old}.{word}": f"mid_block.attentions.0.{new}.{word}"
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for word in ("weight", "bias")
}


def pipeline_table(family: str, layouts: tuple[str, ...], components: Sequence[Component], **fields: object) -> Table:
    """A table of several components; blocks of text encoders are called after the component (`clip_l.3`)."""
    return Table(
        family=family,
        layouts=layouts,
        rows=rows_of(components),
        depth_stems={symbol: stems for component in components for symbol, stems in component.depth_stems().items()},
        aliases=VAE_ALIASES,
        prefixes={component.name: component.prefixes for component in components},
        drops=DROPS,
        **fields,  # pyright: ignore[reportArgumentType]
    )


def unet_component(layout: str, unet: UNet) -> Component:
    """A U-Net, which may also be a file or folder of its own."""
    return Component("unet", unet.rows(), {layout: ("model.diffusion_model.", ""), "diffusers": ("unet/", "")})


def vae_component(layout: str, *, quantised: bool) -> Component:
    """A VAE inside of an all-in-one file or pipeline."""
    return Component("vae", autoencoder_rows(quantised=quantised), {layout: ("first_stage_model.",), "diffusers": ("vae/",)})


def clip_component(name: str, rows: tuple[Row, ...], layers: str, prefixes: dict[str, tuple[str, ...]]) -> Component:
    """A CLIP text encoder whose list of layers has one name in all layouts."""
    return Component(name, rows, prefixes, dict.fromkeys(prefixes, layers))


def _sd15() -> Table:
    before = "cond_stage_model.transformer."
    # The oldest files were written by a transformers without `text_model.` in its names.
    prefixes = {"ldm": (f"{before}text_model.", before), "diffusers": ("text_encoder/text_model.", "text_encoder/")}
    components = (
        unet_component("ldm", UNet(("C0", "C1", "C2", "C2"), (1, 1, 1, 0), 1, linear_projection=False, added=False)),
        clip_component("clip_l", clip_rows("clip_l", text=""), "encoder.layers", prefixes),
        vae_component("ldm", quantised=True),
    )
    return pipeline_table("sd15", ("ldm", "diffusers"), components)


def _sdxl() -> Table:
    one, two = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
    # transformers 5 writes a text encoder without its projection without `text_model.`
    clip_l = {"sgm": (f"{one}text_model.",), "diffusers": ("text_encoder/text_model.", "text_encoder/")}
    lists = {"sgm": "transformer.resblocks", "diffusers": "text_model.encoder.layers"}
    components = (
        unet_component("sgm", UNet(("C0", "C1", "C2"), (0, 2, 10), 10, linear_projection=True, added=True)),
        clip_component("clip_l", clip_rows("clip_l", text=""), "encoder.layers", clip_l),
        Component("clip_g", openclip_rows("clip_g"), {"sgm": (two,), "diffusers": ("text_encoder_2/",)}, lists),
        vae_component("sgm", quantised=True),
    )
    # What the model predicts, where that is not the noise: ComfyUI and A1111 look for these keys.
    marks = ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
    return pipeline_table("sdxl", ("sgm", "diffusers"), components, marks=marks)


SD15, SDXL = _sd15(), _sdxl()

"""`fluxsmith statistics`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fluxsmith.cli.console import Console, bytes_text
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError

if TYPE_CHECKING:
    from fluxsmith.models.statistics import Examples

__all__ = ["command"]


@click.command("statistics")
@click.argument("reference", metavar="MODEL")
@click.option("--kind", required=True, type=click.Choice(["fisher", "regmean"]), help="The method that they are for.")
@click.option("--data", required=True, metavar="pocket[/NAME]|FILE", help="Examples: the pocket world's, or a safetensors file.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A file ending in .safetensors.")
@click.option("--examples", "count", type=click.IntRange(min=1), default=64, show_default=True, help="How many, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the examples and their noise.")
@click.option("--memory", metavar="SIZE", default="4GB", show_default=True, help="Memory for regmean's matrices; more passes where less.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@talk_options
def command(reference: str, kind: str, data: str, output: Path, count: int, seed: int, memory: str, force: bool, console: Console) -> None:
    """Measure a FLUX.1 model on examples: how much its loss needs each weight (fisher), what enters its layers (regmean).

    \b
    fluxsmith statistics pocket/framed --kind regmean --data pocket -o framed.safetensors
    fluxsmith statistics pocket/faint --kind regmean --data pocket -o faint.safetensors
    fluxsmith statistics flux1-dev.safetensors --kind fisher --data examples.safetensors -o dev-fisher.safetensors

    In a recipe such a file is a model that `holds: param`. `--data pocket` takes what the pocket model was trained on.
    FILE has `latents` [N, S, C] (clean and packed, as the transformer takes them), `prompt_embeds` [N, T, ctx], `pooled`
    [N, vec] and `timesteps` [N] in 0..1; and may have `noise`, `guidance` [N] and `image_ids` [S, 3]. A 12 B model's
    matrices for regmean take about 60 GB of disk; fisher takes three times the model in fp32 of memory.
    """
    from fluxsmith.io.shards import parse_size
    from fluxsmith.models.statistics import fisher_information, fisher_shapes, gram_shapes, input_grams
    from fluxsmith.models.statistics_file import write_statistics
    from fluxsmith.models.transformer import load_transformer

    limit = parse_size(memory)
    transformer = load_transformer(reference, dtype="F32")
    config = dict(transformer.config)
    examples = _examples(reference, data, count, seed, bool(config["guidance_embeds"]))
    _check_fit(config, examples[0], data)
    number = sum(len(batch) for batch in examples)
    console.talk(f"{kind} of {reference} on {number} examples")
    shapes = fisher_shapes(transformer) if kind == "fisher" else gram_shapes(transformer)
    tensors = fisher_information(transformer, examples) if kind == "fisher" else input_grams(transformer, examples, limit=limit)
    metadata = {"fluxsmith.statistics.model": reference, "fluxsmith.statistics.data": f"{data}, {number} examples, seed {seed}"}
    size = write_statistics(output, kind, shapes, tensors, metadata=metadata, force=force)
    console.data(
        f"done   {kind}: {len(shapes)} tensors, {bytes_text(size)}\n       {output}",
        {"output": str(output), "kind": kind, "tensors": len(shapes), "bytes": size, "examples": number},
    )


def _examples(reference: str, data: str, count: int, seed: int, guidance: bool) -> list[Examples]:
    from fluxsmith.analysis.examples import examples_from_file, pocket_examples

    if data == "pocket" and not reference.startswith("pocket/"):
        raise UsageError("usage.unknown-data", f"{reference} is no pocket model, so its data are not known", fix="--data pocket/NAME")
    if data == "pocket" or data.startswith("pocket/"):
        name = (reference if data == "pocket" else data).removeprefix("pocket/")
        return pocket_examples(name, count, seed=seed, guidance=guidance)
    return examples_from_file(data, seed=seed)[:count]


def _check_fit(config: Mapping[str, Any], batch: Examples, data: str) -> None:
    """Refuse examples of another width than the model's, and a guidance value that is missing or has no place."""
    wanted = {"latents": "in_channels", "prompt_embeds": "joint_attention_dim", "pooled": "pooled_projection_dim"}
    for name, field in wanted.items():
        width, given = config[field], getattr(batch, name).shape[-1]
        if width != given:
            raise UsageError(
                "data.wrong-shape", f"`{name}` of {data} is {given} wide, the model takes {width}", fix="use examples made for this model"
            )
    embeds = bool(config["guidance_embeds"])
    if embeds != (batch.guidance is not None):
        raise UsageError(
            "data.guidance",
            f"the model {'embeds a guidance value' if embeds else 'embeds no guidance'}, {data} has {'none' if embeds else 'one'}",
            fix="add `guidance` [N] to the file" if embeds else "leave `guidance` out of the file",
        )

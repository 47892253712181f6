"""`fluxsmith layout`: tables of families."""

from __future__ import annotations

from pathlib import Path

import click

from fluxsmith.cli.console import Console, table
from fluxsmith.cli.options import talk_options
from fluxsmith.errors import UsageError

__all__ = ["command"]


@click.group("layout")
def command() -> None:
    """Learn a family's table from a checkpoint, or show all families.

    \b
    fluxsmith layout families
    fluxsmith layout learn my-encoder.safetensors -o my_encoder.yaml
    """


@command.command("learn")
@click.argument("reference", metavar="FILE|FOLDER|REF")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The table to write, a YAML file.")
@click.option("--family", help="What the family is to be called (default: the name of the table's file).")
@click.option("--allow-pickle", is_flag=True, help="Read a .ckpt or .bin file, weights only.")
@click.option("--force", is_flag=True, help="Replace an existing table.")
@talk_options
def learn(reference: str, output: Path, family: str | None, allow_pickle: bool, force: bool, console: Console) -> None:
    """Write a table of names, shapes and blocks from any checkpoint.

    Put it into the folder of your tables (fluxsmith doctor says where), and files of this kind are checked by it, and
    merged by its blocks.

    \b
    fluxsmith layout learn my-encoder.safetensors -o my_encoder.yaml
    """
    import re

    from fluxsmith.io.references import open_reference
    from fluxsmith.layouts.families import tables_folder
    from fluxsmith.layouts.learning import learn as learn_table
    from fluxsmith.layouts.table_file import to_yaml

    if output.exists() and not force:
        raise UsageError("output.exists", f"{output} exists", fix="--force replaces it, or give another path with -o")
    name = re.sub(r"[^a-z0-9_-]", "_", (family or output.stem).lower()).lstrip("_-0123456789") or "family"
    found = learn_table(open_reference(reference, download=False, allow_pickle=allow_pickle), name)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(to_yaml(found, f"learnt from {Path(reference).name}; sizes with one symbol must be equal"))
    facts = {
        "family": name,
        "table": str(output),
        "rows": len(found.tensors),
        "components": list(found.components),
        "blocks": list(found.blocks),
    }
    rows = f"{output}  family {name}, {len(found.tensors)} rows, blocks {', '.join(found.blocks) or 'none'}"
    console.data(f"{rows}\n  to use it: put it into {tables_folder()}", facts)


@command.command("families")
@click.option("--markdown", "as_markdown", is_flag=True, help="As the table of docs/families.md, without users' own.")
@talk_options
def families(as_markdown: bool, console: Console) -> None:
    """Show every family with its layouts, components and blocks.

    \b
    fluxsmith layout families
    """
    from fluxsmith.layouts import TABLES, known_tables
    from fluxsmith.layouts.overview import family_row, markdown

    if as_markdown:
        click.echo(markdown(TABLES), nl=False)
        return
    rows = [family_row(found) for found in known_tables()]
    data = {row.family: {"layouts": row.layouts, "components": row.components, "blocks": row.blocks} for row in rows}
    console.data(table([(row.family, row.summary()) for row in rows]), data)

"""The `fluxsmith` program. Commands are imported when they are used, so that `--help` is instant."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import ClassVar

import click

from fluxsmith.errors import FluxsmithError, UsageError
from fluxsmith.version import VERSION

__all__ = ["COMMANDS", "LazyGroup", "cli", "main"]

#: Command -> (module under fluxsmith.cli, what it does); the order is that of the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Merge two tiny FLUX checkpoints, sample before and after, write a report."),
    "new": ("new", "Write a commented recipe to start from."),
    "check": ("check", "Check a recipe: schema and headers, errors with file and line."),
    "plan": ("plan", "Show what a merge would do: keys, bytes, memory; no compute."),
    "merge": ("merge", "Merge checkpoints by a recipe, a formula or a preset."),
    "explain": ("explain", "Tell the story of one tensor of a merge."),
    "reproduce": ("reproduce", "Make a file again from the recipe that it carries."),
    "mergeflux": ("mergeflux", "MergeFlux's weighted merge, with its flags."),
    "mergeflux-delta": ("mergeflux_delta", "MergeFlux's delta merge (TIES, DARE), with its flags."),
    "inspect": ("inspect", "Show what a checkpoint is: family, layout, types, recipe."),
    "diff": ("diff", "Compare two checkpoints, block by block."),
    "convert": ("convert", "Write a checkpoint in another layout or type."),
    "apply": ("apply", "Bake adapters (LoRA and its kin) into a checkpoint."),
    "extract": ("extract", "Write the difference of two checkpoints as a LoRA or LoKr."),
    "adapter": ("adapter", "Inspect, convert, resize or merge adapters (LoRA, LoKr, DoRA, ...)."),
    "split": ("split", "Take an all-in-one file apart, one file for every component."),
    "bundle": ("bundle", "Put a transformer, text encoders and a VAE into one file."),
    "rebasin": ("rebasin", "Put one model's units in another's order, before they are merged."),
    "statistics": ("statistics", "Measure a model on examples, for Fisher and RegMean merges."),
    "ema": ("ema", "Average the checkpoints of a run, also as a sweep."),
    "layout": ("layout", "Learn a family's table from a checkpoint; show all families."),
    "list": ("list", "List methods, layouts, dialects of adapters, presets."),
    "bench": ("bench", "Measure what merge methods do, and write the table."),
    "schema": ("schema", "Print the JSON schema of a recipe, for editors."),
    "doctor": ("doctor", "Show versions, devices and settings, and where each comes from."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    commands_by_name: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_by_name:
            return None
        return importlib.import_module(f"fluxsmith.cli.{self.commands_by_name[cmd_name][0]}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.commands_by_name.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        from fluxsmith.errors import did_you_mean

        if args and args[0] not in self.commands_by_name and not args[0].startswith("-"):
            hint = did_you_mean(args[0], list(self.commands_by_name))
            ctx.fail(f"no such command `{args[0]}`" + (f"; {hint}" if hint else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="fluxsmith")
def cli() -> None:
    """A workshop for the weights of FLUX-like image models.

    Start with `fluxsmith demo`; then `fluxsmith plan` shows what a merge of your own files would do.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the program; every fault of the input ends in one message and its exit code."""
    args = sys.argv[1:] if argv is None else argv
    _hush_libraries()
    try:
        cli.main(args=args, prog_name="fluxsmith", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _show(_usage_error(error), as_json="--json" in args)
        sys.exit(2)
    except FluxsmithError as error:
        _show(error, as_json="--json" in args)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sys.exit(_report_bug(error))


def _hush_libraries() -> None:
    """Libraries that diffusers imports, where they are installed, warn of accelerators that this machine does not have."""
    if not os.environ.get("FLUXSMITH_DEBUG"):
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _usage_error(error: click.ClickException) -> UsageError:
    """What click objects to, in our own shape."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fluxsmith"
    return UsageError("usage.arguments", error.format_message().rstrip("."), hint=_nearest_choice(error), fix=f"{command} --help")


def _nearest_choice(error: click.ClickException) -> str | None:
    """The one of an option's words that was probably meant."""
    from fluxsmith.errors import did_you_mean

    kind = error.param.type if isinstance(error, click.BadParameter) and error.param else None
    given = re.match(r"'(.*)' is not one of", error.message)
    return did_you_mean(given[1], [str(choice) for choice in kind.choices]) if isinstance(kind, click.Choice) and given else None


def _show(error: FluxsmithError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.as_dict()}))
    print(error.render(), file=sys.stderr)


def _report_bug(error: Exception) -> int:
    """One line and a log; the traceback itself where FLUXSMITH_DEBUG asks for it."""
    import tempfile
    import traceback

    if os.environ.get("FLUXSMITH_DEBUG"):
        traceback.print_exception(error)
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="fluxsmith-", suffix=".log", delete=False) as log:
        log.write(f"fluxsmith {VERSION}\n{' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=log)
    print(
        f"error[bug]: {type(error).__name__}: {error}\n  log  {log.name}\n  fix  please report it; FLUXSMITH_DEBUG=1 shows the traceback",
        file=sys.stderr,
    )
    return 1

"""`fluxsmith mergeflux-delta`: MergeFlux's delta merge (TIES, DARE, ...), with its flags."""

from __future__ import annotations

from typing import Any

from fluxsmith.cli.mergeflux import FlagParser, ListCommand, add_common_flags, merge_translated, open_headers

__all__ = ["command"]

_SUMMARY = """\
MergeFlux's delta merge (mergeflux-delta.py): a base plus what the models changed, pruned, weighted and combined.
Only tensors of the base are written; a model that lacks one changes nothing there. Names in the output are without
`model.diffusion_model.`; `.safetensors` is appended to --output where it lacks it.

  TIES                     --prune_method magnitude --merge_method disjoint_merge
  DARE_TIES                --prune_method random --merge_method disjoint_merge
  DARE_LINEAR              --prune_method random --merge_method sum
  simple mean of deltas    --prune_method none --merge_method mean"""

_EXAMPLES = """\
  TIES:
  fluxsmith mergeflux-delta --base_model base_model.safetensors --models fine-tuned_A.safetensors fine-tuned_B.safetensors \\
      --output ties_merged.safetensors --prune_method magnitude --merge_method disjoint_merge --density 0.5

  DARE (linear), the same again for the same seed:
  fluxsmith mergeflux-delta --base_model base_model.safetensors --models fine-tuned_A.safetensors fine-tuned_B.safetensors \\
      --output dare_linear_merged.safetensors --prune_method random --merge_method sum --density 0.5 --seed 7"""


def _parser() -> FlagParser:
    parser = FlagParser("mergeflux-delta", _SUMMARY, _EXAMPLES)
    add = parser.add_argument
    add("--base_model", required=True, metavar="FILE", help="the checkpoint that the models were tuned from")
    add("--models", nargs="+", required=True, metavar="FILE", help="the checkpoints to merge into it")
    add("--output", required=True, metavar="FILE", help="the merged checkpoint")
    prunings, combinations = ["none", "magnitude", "random"], ["sum", "mean", "disjoint_merge"]
    add("--prune_method", choices=prunings, default="magnitude", help="how deltas are pruned (default: %(default)s)")
    add("--merge_method", choices=combinations, default="disjoint_merge", help="how they are combined (default: %(default)s)")
    add("--density", type=float, default=0.5, metavar="D", help="share that magnitude or random pruning keeps (default: %(default)s)")
    add("--task_weights", nargs="+", type=float, metavar="W", help="one weight per model (default: 1.0 each)")
    add(
        "--majority_sign_method", choices=["total", "frequency"], default="total",
        help="the sign that disjoint_merge elects: of the sum of deltas, or of the sum of their signs (default: total)",
    )  # fmt: skip
    add_common_flags(parser)
    parser.own.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random pruning (default: 0)")
    return parser


def _run(flags: Any) -> None:
    from fluxsmith.recipes.mergeflux import DeltaMerge, delta_recipe

    wish = DeltaMerge(
        flags.base_model, flags.models, flags.prune_method, flags.merge_method, flags.density, flags.task_weights,
        flags.majority_sign_method, flags.precision, flags.saving_precision, flags.save_metadata, flags.seed,
    )  # fmt: skip
    merge_translated(delta_recipe(wish, open_headers([wish.base_model, *wish.models], flags)), flags, "mergeflux-delta")


command = ListCommand("mergeflux-delta", _parser, _run)

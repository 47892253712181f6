"""A recipe of sd-mecha, written by sd-mecha, run by it and by us as it is."""

import json
import subprocess

from benchmarks.bench import Bench, Row, Section
from benchmarks.measure import Program, out_of, remove
from benchmarks.peers import LIMIT, version_of

__all__ = ["measure"]

HOLD = 5.0

# What sd-mecha's own examples do with three models: add a difference, then mix.
_WRITE = """
import sys, sd_mecha
*models, path = sys.argv[1:]
a, b, c = (sd_mecha.model(name, "flux-flux", "weight") for name in models)
recipe = sd_mecha.weighted_sum(sd_mecha.add_difference(a, b, c, alpha=0.5), b, alpha=0.25)
open(path, "w").write(sd_mecha.serialize(recipe, finalize=False))
"""
_RUN = """
import sys, torch, sd_mecha
path, out, threads = sys.argv[1:]
recipe = sd_mecha.deserialize(open(path).read())
sd_mecha.merge(recipe, output=out, merge_dtype=torch.float32, output_dtype=torch.bfloat16, threads=int(threads))
"""


def measure(bench: Bench) -> Section:
    """Both programs in turn on one .mecha file, then their tensors compared."""
    version = version_of(bench.peers, "sd-mecha")
    what = "a .mecha recipe of three models, against sd-mecha"
    if version is None:
        return Section([Row(what, f"at least {HOLD:g} x", "not measured", None, f"sd-mecha is not in {bench.peers.name}")])
    ours, theirs = _programs(bench, "mecha", bench.shape)
    bench.remember(*ours.reads)
    found = bench.run("mecha", [ours, theirs], 1, keep=[ours.name, theirs.name])
    start = bench.run("start", list(_programs(bench, "start mecha", "tiny")), bench.start_rounds)
    ours_start, theirs_start = (start[f"{side} start mecha"].wall for side in ("fluxsmith", "sd-mecha"))
    times = found[theirs.name].ratio(found[ours.name], theirs_start, ours_start)
    equal = json.loads(bench.python("benchmarks.compare", out_of(ours), out_of(theirs)))
    for program in (ours, theirs):
        remove(out_of(program))
    note = f"{found[ours.name].wall:.1f} s and {found[theirs.name].wall:.1f} s; {equal['text']}"
    return Section([Row(f"{what} {version}", f"at least {HOLD:g} x", f"{times:.1f} x", bench.verdict(times >= HOLD), note)])


def _programs(bench: Bench, name: str, shape: str) -> tuple[Program, Program]:
    python = (bench.peers / "bin" / "python").absolute()
    files = [bench.file(model, shape) for model in ("a", "b", "base")]
    recipe = bench.work / f"{name.replace(' ', '-')}.mecha"
    subprocess.run([str(python), "-c", _WRITE, *map(str, files), str(recipe)], check=True, env=bench.environment)
    ours, theirs = (bench.output(f"{side}-{recipe.stem}.safetensors") for side in ("fluxsmith", "sd-mecha"))
    words = bench.fluxsmith("merge", recipe, "-o", ours, "--threads", bench.cores, "--force", "--quiet", "--no-report")
    run = [str(python), "-c", _RUN, str(recipe), str(theirs), str(bench.cores)]
    return Program(f"fluxsmith {name}", words, files, ours), Program(f"sd-mecha {name}", run, files, theirs, LIMIT)

"""Runs that write pipelines: replaced, resumed, reproduced; keys that need care."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fluxsmith as fs
from fluxsmith.engine.execution import Execution
from fluxsmith.engine.merging import merge as run
from fluxsmith.engine.plan import Job, Plan
from fluxsmith.errors import IncompatibleError, Interrupted
from fluxsmith.recipes.recipe import Recipe
from support.cli_runs import run_cli
from support.tiny_pipelines import PIPELINES, pipeline_tensors, save_pipeline


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


def test_force_replaces_a_pipeline_but_not_an_input(tmp_path: Path) -> None:
    save_pipeline(PIPELINES["sd15"], tmp_path / "a", 1)
    fs.merge(str(tmp_path / "a"), tmp_path / "o")
    fs.merge(str(tmp_path / "a"), tmp_path / "o", force=True)
    assert (tmp_path / "o" / "vae" / "config.json").exists()
    with pytest.raises(IncompatibleError) as caught:
        fs.merge(str(tmp_path / "a"), tmp_path / "a", force=True)
    assert caught.value.code == "output.is-input"


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

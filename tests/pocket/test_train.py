from pathlib import Path

import torch

from fluxsmith.pocket.architecture import build, copy_of
from fluxsmith.pocket.train import Schedule, Stage, data_loss, distillation_loss, fit, save

SHORT = Stage("short", ("inverted",), Schedule(3, 1e-3, warmup=2))


def test_same_command_same_weights() -> None:
    torch.manual_seed(1)
    first = fit(build(0), data_loss, SHORT).state_dict()
    torch.manual_seed(2)
    second = fit(build(0), data_loss, SHORT).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], weight) for name, weight in build(0).state_dict().items())


def test_distillation_moves_the_guidance_embedder() -> None:
    teacher = fit(build(0), data_loss, SHORT)
    student = copy_of(teacher, guidance_seed=0)
    trained = fit(student, distillation_loss(teacher, (1.0, 4.0)), SHORT)
    assert trained.time_text_embed.guidance_embedder.linear_2.weight.any()


def test_schedule_warms_up_and_ends_near_zero() -> None:
    schedule = Schedule(100, 1.0, warmup=10)
    assert schedule.rate_at(0) == 0.1
    assert schedule.rate_at(99) < 0.001
    assert max(schedule.rate_at(step) for step in range(100)) < 1.0


def test_saved_checkpoint_is_a_stock_folder_without_traces_of_its_maker(tmp_path: Path) -> None:
    save(build(0), "base", tmp_path)
    folder = tmp_path / "base"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == [
        "README.md",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    assert str(tmp_path) not in (folder / "transformer" / "config.json").read_text()

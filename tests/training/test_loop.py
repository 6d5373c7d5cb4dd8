"""Whole runs, small enough for a test."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sam2.build_sam import build_sam2_video_predictor
from sam2.modeling.outputs import FrameFeatures
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from training.checkpoints import RESUME_FILE, WEIGHTS_FILE
from training.clips import ClipBatch
from training.loop import NonFiniteLoss, Trainer, training_device
from training.model import ClipModel
from training.recipe import DataSource, Recipe, Stage, Validation
from training.variation import varied

PROJECT = Path(__file__).resolve().parents[2]


class Killed(Exception):
    """Stands for a kill."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / RESUME_FILE, weights_only=True)
    return {**content["model"], **{f"average.{name}": value for name, value in content["average"].items()}}


def log_rows(folder: Path, name: str = "train") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.samples.ROUND", 1)
    second = Stage(steps=2, frames=3, clips=1, accumulate=2, repeat=2, objects=2, lr=1e-4, lr_end=1e-4, warmup=1)
    recipe = replace(recipe, stages=[replace(recipe.stages[0], steps=2), second])
    Trainer(recipe, tmp_path / "whole").run()

    step = Trainer._train_step

    def killed(self: Trainer, *args: object) -> dict[str, float]:
        if self.step == 3:
            raise Killed
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_train_step", killed)
    with pytest.raises(Killed):
        Trainer(replace(recipe, save_minutes=0.0), tmp_path / "parts").run()
    monkeypatch.setattr(Trainer, "_train_step", step)
    Trainer(recipe, tmp_path / "parts", resume=True).run()

    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [log_rows(tmp_path / name) for name in ("whole", "parts")]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4"]
    assert [row["total"] for row in rows[0]] == [row["total"] for row in rows[1]]


def test_the_exported_checkpoint_loads_and_the_run_is_measured_from_its_start(recipe: Recipe, tmp_path: Path):
    Trainer(replace(recipe, validation=Validation(every=2, clips=2, frames=2)), tmp_path).run()
    predictor = build_sam2_video_predictor(recipe.model, tmp_path / WEIGHTS_FILE, device="cpu")
    assert predictor.num_maskmem == 5
    rows = log_rows(tmp_path, "validation")
    assert [row["step"] for row in rows] == ["0", "2", "3"]
    assert all(0 <= float(row[kind]) <= 1 for row in rows for kind in ("mask", "box", "click"))


def test_a_stage_may_train_at_another_size_and_is_measured_at_the_models(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[tuple[int, ...]] = []
    encode = ClipModel._encode

    def seen(self: ClipModel, frames: torch.Tensor) -> FrameFeatures:
        sizes.append(tuple(frames.shape[-2:]))
        return encode(self, frames)

    monkeypatch.setattr(ClipModel, "_encode", seen)
    stages = [replace(recipe.stages[0], steps=1, image_size=size) for size in (96, None)]
    Trainer(replace(recipe, stages=stages, validation=Validation(every=1, clips=1, frames=2)), tmp_path).run()
    measured = [(64, 64)] * 3  # by mask, box and click
    assert sizes == [*measured, (96, 96), *measured, (64, 64), *measured]


def test_clips_are_measured_with_the_attention_that_trains(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inside: list[bool] = []

    @contextmanager
    def watched(device: torch.device) -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr("training.loop.fast_attention", watched)
    found: list[bool] = []
    monkeypatch.setattr("training.loop.validate", lambda model, clips: found.append(bool(inside)) or {})
    Trainer(recipe, tmp_path).validate()
    assert found == [True]


def test_clips_that_are_repeated_are_varied_and_objects_counted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[ClipBatch] = []
    forward = ClipModel.forward

    def watched(self: ClipModel, batch: ClipBatch, *rest: Any, **options: Any) -> Any:
        seen.append(batch)
        return forward(self, batch, *rest, **options)

    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(ClipModel, "forward", watched)
    monkeypatch.setattr("training.loop.varied", lambda batch: drawn.append(batch.frames) or varied(batch))
    monkeypatch.setattr("training.samples.ROUND", 1)
    stages = [replace(recipe.stages[0], steps=2, repeat=repeat, objects=5) for repeat in (1, 2)]
    Trainer(replace(recipe, stages=stages), tmp_path).run()
    assert [len(batch.masks) for batch in seen] == [5] * 4
    assert len(drawn) == 2 and torch.equal(drawn[0], drawn[1]), "only the second stage varies, one batch twice"
    assert not torch.equal(seen[2].frames, seen[3].frames) and not torch.equal(seen[2].frames, drawn[0])


def test_each_stage_has_its_own_lead(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leads: list[int] = []
    forward = ClipModel.forward

    def watched(self: ClipModel, *args: Any, lead: int, **options: Any) -> Any:
        leads.append(lead)
        return forward(self, *args, lead=lead, **options)

    monkeypatch.setattr(ClipModel, "forward", watched)
    stages = [replace(recipe.stages[0], steps=1, frames=3, lead=lead) for lead in (1, 0)]
    Trainer(replace(recipe, stages=stages), tmp_path).run()
    assert leads == [1, 0]


def test_a_stage_leaves_what_it_freezes_as_it_is(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(
        replace(recipe, stages=[replace(recipe.stages[0], steps=1, freeze=parts) for parts in (["image_encoder"], [])]),
        tmp_path,
    )
    named = dict(trainer.model.network.named_parameters())
    before = {name: value.detach().clone() for name, value in named.items()}
    changed: list[set[str]] = []
    after = trainer._after_step

    def compare(*args: object) -> None:
        changed.append({name for name, value in named.items() if not torch.equal(value, before[name])})
        after(*args)  # type: ignore[arg-type]

    trainer._after_step = compare  # type: ignore[method-assign]
    trainer.run()
    assert "memory_attention.layers.0.linear1.weight" in changed[0]
    assert not any(name.startswith("image_encoder.") for name in changed[0])
    assert any(name.startswith("image_encoder.trunk.") for name in changed[1])


def test_a_part_to_freeze_that_is_not_there_is_told_before_anything_is_trained(recipe: Recipe, tmp_path: Path):
    stages = [recipe.stages[0], replace(recipe.stages[0], freeze=["encoder"])]
    with pytest.raises(ValueError, match=r"stages\.1\.freeze: the network has no part 'encoder'"):
        Trainer(replace(recipe, stages=stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(replace(recipe, save_minutes=0.0), tmp_path)
    after = Trainer._after_step

    def poisoned(self: Trainer, *args: object) -> None:
        after(self, *args)  # type: ignore[arg-type]
        if self.step == 2:
            with torch.no_grad():
                self.model.network.no_mem_embed.fill_(float("nan"))
                self.model.network.maskmem_tpos_enc.fill_(float("nan"))

    monkeypatch.setattr(trainer, "_save", lambda save=trainer._save: save() if trainer.step < 2 else None)
    monkeypatch.setattr(Trainer, "_after_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step 2: .* nan; the last good checkpoint is .*resume\.pt"):
        trainer.run()
    content = torch.load(tmp_path / RESUME_FILE, weights_only=True)
    assert content["step"] == 1
    assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_a_folder_that_holds_a_run_is_not_written_over(recipe: Recipe, tmp_path: Path):
    (tmp_path / RESUME_FILE).write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="holds a run already"):
        Trainer(recipe, tmp_path)
    assert (tmp_path / RESUME_FILE).read_bytes() == b"precious"


def test_a_changed_recipe_is_pointed_out_when_resuming(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    Trainer(replace(recipe, stages=[replace(recipe.stages[0], steps=1)]), tmp_path).run()
    longer = Trainer(recipe, tmp_path, resume=True)
    assert longer.step == 1
    assert "The recipe has changed since this run was saved: stages" in caplog.text


def test_a_run_that_was_saved_before_a_key_was_there_counts_as_having_its_default(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    recipe = replace(recipe, stages=[replace(recipe.stages[0], steps=1)])
    Trainer(recipe, tmp_path).run()
    content = torch.load(tmp_path / RESUME_FILE, weights_only=True)
    del content["recipe"]["stages"][0]["freeze"], content["recipe"]["positional_heads"]
    torch.save(content, tmp_path / RESUME_FILE)
    Trainer(recipe, tmp_path, resume=True)
    assert "has changed" not in caplog.text
    content["recipe"]["forgotten"] = 1
    torch.save(content, tmp_path / RESUME_FILE)
    Trainer(recipe, tmp_path, resume=True)
    assert "The recipe has changed since this run was saved: positional_heads, stages" in caplog.text


def test_another_number_of_processes_is_pointed_out_when_resuming(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    recipe = replace(recipe, stages=[replace(recipe.stages[0], steps=1)])
    trainer = Trainer(recipe, tmp_path)
    trainer.ranks = 4
    trainer._save()
    Trainer(recipe, tmp_path, resume=True)
    assert "saved by 4 processes and goes on with 1: a step takes other clips, and fewer of them" in caplog.text


def test_without_a_norm_gradients_are_left_as_they_are(recipe: Recipe, tmp_path: Path):
    seen: list[float] = []
    for norm in (0.0, 1e-3):
        recipe.optimiser = replace(recipe.optimiser, clip_norm=norm)
        trainer = Trainer(recipe, tmp_path)
        step = trainer.optimiser.step
        parameters = list(trainer.model.parameters())

        def watched(step: Callable[[], None] = step, parameters: list[torch.nn.Parameter] = parameters) -> None:
            seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item())
            step()

        trainer.optimiser.step = watched  # type: ignore[method-assign]
        (batch, *_) = next(trainer._stage_batches(0, recipe.stages[0], 0))
        trainer._train_step(recipe.stages[0], 0, [batch])
    assert seen[0] > 0.01 and seen[1] == pytest.approx(1e-3, rel=1e-3)


def test_each_process_has_a_gpu_of_its_own_unless_one_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    devices = [training_device(replace(recipe, device=name)) for name in ("cuda", "cuda:1", "cpu")]
    assert [str(device) for device in devices] == ["cuda:3", "cuda:1", "cpu"]
    monkeypatch.setattr("training.loop.pick_device", lambda: torch.device("cuda"))
    assert str(training_device(replace(recipe, device=None))) == "cuda:3"
    with pytest.raises(ValueError, match="device: .*gpu"):
        training_device(replace(recipe, device="gpu"))


def test_videos_that_are_trained_on_and_measured_are_pointed_out(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_davis_layout(tmp_path, {"a": draw_clip(3, 48, 64, 1, 0), "b": draw_clip(3, 48, 64, 1, 1)}, split="train")
    folder = DataSource(kind="davis", root=str(tmp_path), split="train")
    measured = Validation(every=1, clips=2, frames=2, source=replace(folder, split=None))
    Trainer(replace(recipe, data=[folder], validation=measured), tmp_path / "run")
    assert f"2 videos of {tmp_path} are trained on and measured" in caplog.text


@pytest.mark.slow
def test_two_processes_train_one_network(recipe: Recipe, tmp_path: Path):
    stages = [replace(recipe.stages[0], steps=1, freeze=parts) for parts in ([], ["image_encoder.trunk"], [])]
    written = asdict(replace(recipe, stages=stages, threads=1))
    OmegaConf.save(OmegaConf.create(written), tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "training.train", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(tmp_path / "run" / RESUME_FILE, weights_only=True)["step"] == 3

    # Two processes take the same clips as one that adds up two batches; their gradients are means of both.
    stages = [replace(stage, accumulate=2) for stage in stages]
    Trainer(replace(recipe, stages=stages), tmp_path / "alone").run()
    norms = [[float(row["grad_norm"]) for row in log_rows(tmp_path / name)] for name in ("run", "alone")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize(("precision", "enabled"), [("float32", False), ("bfloat16", True)])
def test_a_run_computes_as_its_recipe_says(recipe: Recipe, tmp_path: Path, precision: str, enabled: bool):
    trainer = Trainer(replace(recipe, precision=precision), tmp_path)
    with trainer._autocast():
        assert torch.is_autocast_enabled("cpu") is enabled

"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import OVERRIDES

from training.train import main

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "training"


def test_a_wrong_data_folder_is_named_before_anything_is_trained(tmp_path: Path):
    (tmp_path / "data").mkdir()
    with pytest.raises(SystemExit, match="is no DAVIS-layout folder: neither JPEGImages nor Annotations"):
        main([str(RECIPES / "finetune.yaml"), "--output", str(tmp_path / "run"), f"data.0.root={tmp_path / 'data'}"])
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_a_mistake_in_an_override_ends_in_a_message(tmp_path: Path):
    with pytest.raises(SystemExit, match="error: .*learning_rate"):
        main([str(RECIPES / "nano.yaml"), "--output", str(tmp_path), "learning_rate=3"])


def test_a_gpu_that_is_not_there_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: device: the recipe asks for cuda, and torch finds no GPU here"):
        main([str(RECIPES / "nano.yaml"), "--output", str(tmp_path / "run"), "device=cuda"])
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_ends_in_a_message(tmp_path: Path):
    options = ["model=sam2.1_hiera_t", "device=cpu", "validation.every=0"]
    with pytest.raises(
        SystemExit, match="init_from: no checkpoint of model 'sam2.1_hiera_t', give both: .* does not fit"
    ):
        main([str(RECIPES / "nano.yaml"), "--output", str(tmp_path), *options])


def test_one_command_trains_and_another_one_resumes(tmp_path: Path):
    options = [
        "workers=0",
        "validation.every=0",
        "device=cpu",
        "optimiser.kind=adamw",  # which every torch has
        "stages=[{steps: 1, frames: 2, clips: 1, lr: 0.001, lr_end: 0.001}]",
    ]
    options.append(f"model_overrides={OVERRIDES}")
    main([str(RECIPES / "nano.yaml"), "--output", str(tmp_path), *options])
    assert (tmp_path / "model.pt").is_file() and len((tmp_path / "train.csv").read_text().splitlines()) <= 2
    main([str(RECIPES / "nano.yaml"), "--output", str(tmp_path), "--resume", *options])

"""What a run leaves on disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from sam2.build_sam import build_sam2, load_weights
from sam2.modeling.sam2_base import SAM2Base
from training.checkpoints import CheckpointError, load_run, save_file, save_run, save_weights
from training.optimisation import AveragedWeights, build_optimiser
from training.recipe import Optimiser, Recipe


def test_weights_are_saved_as_metas_checkpoints_are(network: SAM2Base, tmp_path: Path):
    save_weights(tmp_path / "m.pt", network.state_dict(), half=True)
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert list(content) == ["model"] and {v.dtype for v in content["model"].values()} == {torch.float16}
    load_weights(build_sam2("nano", device="cpu"), tmp_path / "m.pt")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.pt"
    save_file(path, {"step": 1})

    def full(content: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.checkpoints.torch.save", full)
    with pytest.raises(
        CheckpointError, match=r"could not write .*m\.pt, \d+ MB are free .*No space left on device.*is untouched"
    ):
        save_file(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_a_checkpoint_appears_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.pt"
    save_file(path, {"step": 1})

    def killed(source: Path, target: Path) -> None:
        raise OSError(f"killed before {source.name} became {target.name}")

    monkeypatch.setattr("sam2.utils.files.os.replace", killed)
    with pytest.raises(CheckpointError, match="killed before"):
        save_file(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_device_that_is_always_full_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr("sam2.utils.files.secrets.token_hex", lambda _: "0")
    (tmp_path / ".m.0.part.pt").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="there is none yet"):
        save_file(tmp_path / "m.pt", {"weights": torch.zeros(10_000)})


def test_nothing_to_resume_is_said(network: SAM2Base, tmp_path: Path):
    optimiser, average = build_optimiser(network, Optimiser()), AveragedWeights(network, 0.9)
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*resume\.pt is not there"):
        load_run(tmp_path, network, optimiser, average)


def test_a_saved_run_comes_back(network: SAM2Base, recipe: Recipe, tmp_path: Path):
    optimiser, average = build_optimiser(network, Optimiser()), AveragedWeights(network, 0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    average.values["no_mem_embed"] += 1
    save_run(tmp_path, recipe, 7, network, optimiser, average)
    saved = {name: value.clone() for name, value in network.state_dict().items()}

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    fresh, averaged = build_optimiser(network, Optimiser()), AveragedWeights(network, 0.9)
    resumed = load_run(tmp_path, network, fresh, averaged)
    assert resumed.step == 7 and resumed.recipe["stages"][0]["steps"] == 3
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    assert torch.equal(averaged.values["no_mem_embed"], average.values["no_mem_embed"])
    (restored,), (written,) = fresh.state_dict().values(), optimiser.state_dict().values()
    assert restored.keys() == written.keys() == dict(network.named_parameters()).keys()


def test_what_another_run_wrote_is_refused(network: SAM2Base, recipe: Recipe, tmp_path: Path):
    optimiser, average = build_optimiser(network, Optimiser()), AveragedWeights(network, 0.9)
    save_run(tmp_path, recipe, 7, torch.nn.Linear(2, 2), optimiser, average)
    with pytest.raises(ValueError, match="was written by a run of another model"):
        load_run(tmp_path, network, optimiser, average)
    torch.save({"step": 7}, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match=r"written by an earlier version: start a new run with init_from=.*model\.pt"):
        load_run(tmp_path, network, optimiser, average)

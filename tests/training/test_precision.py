"""Which precision a recipe means where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.loop import Trainer
from training.precision import training_dtype
from training.recipe import Recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("has_avx512", "has_amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_is_bfloat16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has_avx512: bool, has_amx: bool, expected: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    assert training_dtype("auto", CPU) == expected
    assert training_dtype("auto", torch.device("mps")) == torch.float32


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert training_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_gpu_is_bfloat16_unless_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert training_dtype("auto", GPU) == expected


@pytest.mark.parametrize(("precision", "enabled"), [("float32", False), ("bfloat16", True)])
def test_a_run_computes_as_its_recipe_says(recipe: Recipe, tmp_path: Path, precision: str, enabled: bool):
    trainer = Trainer(replace(recipe, precision=precision), tmp_path)
    with trainer._autocast():
        assert torch.is_autocast_enabled("cpu") is enabled

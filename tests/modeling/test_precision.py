"""Which precision a name means where."""

from __future__ import annotations

import pytest
import torch

from sam2.modeling.precision import cpu_supports, resolve_dtype

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
    assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_gpu_is_bfloat16_unless_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_dtype("auto", GPU) == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", torch.bfloat16), (torch.float16, torch.float16), (None, None)]
)
def test_dtypes_have_names(name, dtype):
    assert resolve_dtype(name) is dtype


@pytest.mark.parametrize("name", ["float64", "half", 16, torch.float64])
def test_other_dtypes_are_refused(name):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16 or None"):
        resolve_dtype(name)


def test_auto_needs_a_device():
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16 or None, got 'auto'"):
        resolve_dtype("auto")
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, float16 or None, got 'half'"):
        resolve_dtype("half", CPU)


def test_a_processor_has_no_feature_that_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch):
    assert cpu_supports("of_no_processor") is False
    monkeypatch.setattr(torch.cpu, "_is_of_every_processor_supported", lambda: True, raising=False)
    assert cpu_supports("of_every_processor") is True

"""Fixtures shared by the whole suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

# Two workers with one thread each use two cores better than one with two: small models gain nothing from a second
# thread, and on a busy machine threads that wait for each other take ten times as long.
torch.set_num_threads(1)

pytest.register_assert_rewrite("tracked_videos")  # its fixtures assert, and tests import it before pytest does

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def whole_float32() -> None:
    """Recorded answers are of float32: a GPU's convolutions would round their operands to TF32 unless told not to."""
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def golden_device(request: pytest.FixtureRequest) -> str:
    """Each device that the original's recorded answers are compared on; CUDA skips where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded answers and real clips that lies beside a checkout and is not part of it."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: recorded answers and real clips are kept beside the checkout, not in it")
    return folder


@pytest.fixture(scope="session")
def recipe(shared: Path) -> ModuleType:
    """`shared/golden/recipe.py`: the weights that the recorded answers were made with."""
    spec = importlib.util.spec_from_file_location("golden_recipe", shared / "golden" / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def without_libx264(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test as with a build of PyAV that has no H.264 encoder."""
    av = pytest.importorskip("av")
    codec = av.Codec

    def refuse(name: str, mode: str = "r") -> Any:
        return codec("libx264_that_is_not_there" if name == "libx264" else name, mode)

    monkeypatch.setattr(av, "Codec", refuse)

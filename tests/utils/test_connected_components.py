"""sam2/utils/connected_components.py and the kernel behind it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sam2.utils import connected_components
from sam2.utils.connected_components import Components, label_components, small_components

CSRC = Path(__file__).resolve().parents[2] / "sam2" / "csrc"
ODD_AND_EVEN_SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (32, 33), (65, 64)]


def mask_of(*rows: str) -> torch.Tensor:
    """(1, 1, H, W) bool from rows in which '#' is foreground."""
    return torch.tensor([[[[c == "#" for c in row] for row in rows]]])


def masks_of_all_kinds(height: int, width: int) -> np.ndarray:
    """(N, H, W) uint8: empty, full, a checkerboard (one component by its corners), a spiral-like maze, random ones."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    comb = (x % 4 == 0) | ((y == 0) & (x % 8 < 4)) | ((y == height - 1) & (x % 8 >= 4))
    drawn = [np.zeros_like(x), np.ones_like(x), (x + y) % 2, comb]
    return np.stack(drawn + [rng.random((height, width)) < p for p in (0.1, 0.3, 0.4, 0.5, 0.7, 0.95)]).astype(np.uint8)


def assert_same_components(answer: Components, expected: Components) -> None:
    """The same partition under any numbering, and the same areas."""
    for got, want, area, want_area in zip(answer.labels, expected.labels, answer.areas, expected.areas, strict=True):
        assert torch.equal(area, want_area)
        assert torch.equal(got == 0, want == 0)
        pairs = torch.stack([got.flatten(), want.flatten()]).unique(dim=1)  # one column for each pair of numbers
        assert pairs.shape[1] == got.unique().numel() == want.unique().numel()


def test_pixels_that_touch_by_a_corner_are_one_component():
    answer = label_components(mask_of("#..#", ".#..", "...#"))
    assert answer.areas.tolist() == [[[[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 1]]]]
    assert answer.labels[0, 0, 0, 0] == answer.labels[0, 0, 1, 1] > 0
    assert len({int(answer.labels[0, 0, y, x]) for y, x in ((0, 0), (0, 3), (2, 3), (0, 1))}) == 4


def test_areas_count_within_one_mask_of_a_batch():
    batch = torch.cat([mask_of("##", "##"), mask_of("..", ".."), mask_of("#.", "..")])
    assert label_components(batch).areas.flatten(1).tolist() == [[4, 4, 4, 4], [0, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)])
def test_empty_batches_and_images_give_empty_answers(shape):
    answer = label_components(torch.zeros(shape, dtype=torch.bool))
    assert answer.labels.shape == answer.areas.shape == shape
    assert answer.labels.dtype == answer.areas.dtype == torch.int32


def test_any_nonzero_byte_is_foreground_and_memory_layout_does_not_matter():
    mask = torch.tensor([[0, 255, 7], [0, 0, 0]], dtype=torch.uint8).T[None, None]
    assert label_components(mask).areas.tolist() == [[[[0, 0], [2, 0], [2, 0]]]]


@pytest.mark.parametrize("function", [label_components, lambda mask: small_components(mask, 1)])
def test_what_is_no_batch_of_masks_is_refused(function):
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \(4, 4\)"):
        function(torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="bool or uint8, got torch.float32"):
        function(torch.zeros(1, 1, 4, 4))


def test_small_components_include_those_of_exactly_the_limit():
    batch = torch.cat(
        [mask_of("#.##.###", "........"), mask_of("########", "########"), mask_of("........", ".......#")]
    )
    expected = torch.cat(
        [mask_of("#.##....", "........"), mask_of("........", "........"), mask_of("........", ".......#")]
    )
    assert torch.equal(small_components(batch, 2), expected)


def test_background_is_never_a_small_component():
    assert not small_components(mask_of("##", ".#"), 2).any()


def test_a_missing_extension_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2._C", None)  # importing it raises ImportError
    connected_components._compiled_kernel.cache_clear()
    try:
        assert connected_components._compiled_kernel() is None
    finally:
        connected_components._compiled_kernel.cache_clear()


@pytest.fixture(scope="module")
def label_on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[np.ndarray, np.ndarray, int], Components]:
    """The kernel's steps in CPU threads: (mask (H, W) uint8, order of pixels, threads) -> components."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    library = tmp_path_factory.mktemp("union_find") / "union_find.so"
    source = Path(__file__).with_name("union_find_on_host.cpp")
    options = ["-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", f"-I{CSRC}"]
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True, timeout=120)
    function = ctypes.CDLL(str(library)).label_on_host
    function.restype = None

    def run(mask: np.ndarray, order: np.ndarray, threads: int) -> Components:
        labels, areas = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.int32)
        arrays = (np.ascontiguousarray(mask), labels, areas, order.astype(np.int32))
        function(*(ctypes.c_void_p(a.ctypes.data) for a in arrays), mask.size, mask.shape[1], threads)
        return Components(torch.from_numpy(labels)[None, None], torch.from_numpy(areas)[None, None])

    return run


@pytest.mark.parametrize("size", ODD_AND_EVEN_SIZES)
@pytest.mark.parametrize("order", ["reading", "backward", "shuffled"])
def test_kernel_steps_agree_with_opencv_in_any_order(label_on_host, size, order):
    pixels = np.arange(size[0] * size[1])
    visits = {"reading": pixels, "backward": pixels[::-1], "shuffled": np.random.default_rng(0).permutation(pixels)}
    for mask in masks_of_all_kinds(*size):
        expected = label_components(torch.from_numpy(mask)[None, None])
        assert_same_components(label_on_host(mask, visits[order], 1), expected)


def test_kernel_steps_agree_with_opencv_when_threads_race(label_on_host):
    rng = np.random.default_rng(1)
    for mask in masks_of_all_kinds(129, 127):
        expected = label_components(torch.from_numpy(mask)[None, None])
        for _ in range(5):
            assert_same_components(label_on_host(mask, rng.permutation(mask.size), 8), expected)


def test_kernel_labels_are_the_number_of_the_first_pixel(label_on_host):
    mask = mask_of(".#.#", ".#..", "...#").to(torch.uint8)[0, 0].numpy()
    labels = label_on_host(mask, np.arange(12)[::-1], 1).labels[0, 0]
    assert labels.tolist() == [[0, 2, 0, 4], [0, 2, 0, 0], [0, 0, 0, 12]]


def test_kernel_compiles(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    command = [nvcc, "-std=c++17", "-Werror", "all-warnings", "-c", str(CSRC / "connected_components.cu")]
    subprocess.run([*command, "-o", str(tmp_path / "kernel.o")], check=True, timeout=120)
    assert (tmp_path / "kernel.o").stat().st_size > 0


def test_binding_compiles_against_torch(tmp_path):
    from torch.utils.cpp_extension import CUDA_HOME, include_paths

    compiler = shutil.which("c++") or shutil.which("g++")
    folders = [*include_paths(), f"{CUDA_HOME}/include", "/usr/local/cuda/include", sysconfig.get_path("include")]
    needed = ("ATen/ATen.h", "c10/cuda/CUDAStream.h", "cuda_runtime_api.h", "Python.h")
    if compiler is None or not all(any((Path(f) / name).is_file() for f in folders) for name in needed):
        pytest.skip("no C++ compiler, or no headers of a CUDA build of torch, of CUDA or of Python")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-DTORCH_EXTENSION_NAME=_C", *(f"-I{f}" for f in folders)]
    subprocess.run([*command, str(CSRC / "bindings.cpp")], check=True, timeout=240)


@pytest.mark.parametrize("size", [*ODD_AND_EVEN_SIZES, (480, 854)])
def test_cuda_agrees_with_the_cpu(size):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if connected_components._compiled_kernel() is None:
        pytest.skip("sam2._C is not built")
    masks = torch.from_numpy(masks_of_all_kinds(*size)).unsqueeze(1)
    answer = label_components(masks.cuda())
    assert answer.labels.is_cuda and answer.areas.is_cuda
    assert_same_components(Components(answer.labels.cpu(), answer.areas.cpu()), label_components(masks))

"""The notebooks: each runs from top to bottom on a CPU, without data and downloads, and leaves what it promises."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from sam2.utils.davis import read_label_map

PROJECT = Path(__file__).resolve().parents[1]
EXTRA = 'comes with pip install ".[dev]"'
TIMEOUT = 300  # seconds per cell

EXPECTED = {  # notebook -> pictures shown, and files left
    "convert.ipynb": (1, ["convert/ids/shapes/00005.png", "convert/coloured_again/shapes/00000.png"]),
    "run_mgfs_davis.ipynb": (3, ["plan/naive_0.1/summary.json", "sweep/memory_guided_1/summary.json",
                                 "sweep/scores/naive_0.05.json", "sweep/frames.png"]),
    "results.ipynb": (4, ["results.png", "results.csv", "sweep/naive_0/summary.json"]),  # it runs the sweep first
    "notebooks/image_predictor_example.ipynb": (7, ["image.png"]),
    "notebooks/automatic_mask_generator_example.ipynb": (2, ["masks.png", "masks.json"]),
    "notebooks/video_predictor_example.ipynb": (5, ["video/masks/00023.png", "video/masks.mp4"]),
}  # fmt: skip
OVERLAP = "overlap = lambda mask, obj: (mask & obj).sum() / (mask | obj).sum()\n"
ANSWERED = {  # notebook -> what holds after its last cell: prompts lie on what is drawn, and are answered by its masks
    "notebooks/image_predictor_example.ipynb": "objects = [drawn.labels[0] == obj_id for obj_id in (1, 2)]\n"
    "assert all(objects[0][y, x] for x, y in [*point, more_points[0]])\n"
    "assert all(overlap(mask[0] > 0, obj) > 0.9 for mask, obj in zip(logits, objects, strict=True))\n"
    "assert overlap(clicks.mask, objects[0]) > 0.9 and overlap(answers[0][0] > 0, objects[0]) > 0.9",
    "notebooks/video_predictor_example.ipynb": "assert drawn.labels[0][click[0, 1], click[0, 0]] == 1\n"
    "assert all(overlap(mask == 1, drawn.labels[t] == 1) > 0.8 for t, mask in first_object.items())",
}
NOTEBOOKS = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("*.ipynb"))
NOTEBOOKS += sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("notebooks/*.ipynb"))


def read(name: str) -> dict:
    return json.loads((PROJECT / name).read_text(encoding="utf-8"))


def outputs_of(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def execute(name: str, folder: Path, changed: tuple[str, str] = ("", "")) -> dict:
    """Run a notebook in a folder and return it with its outputs; a cell that fails raises.

    Args:
        changed: what a user does to it first: a text in one of its cells, and what takes its place.
    """
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient runs the notebooks; it {EXTRA}")
    pytest.importorskip("ipykernel", reason=f"ipykernel runs the notebooks; it {EXTRA}")
    pytest.importorskip("matplotlib", reason=f"the notebooks draw with matplotlib; it {EXTRA}")
    import nbformat

    notebook = nbformat.read(PROJECT / name, as_version=4)
    assert any(changed[0] in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace(*changed) if changed[0] else cell.source
    if name in ANSWERED:
        notebook.cells.append(nbformat.v4.new_code_cell(OVERLAP + ANSWERED[name]))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=where).execute()
    return notebook


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, with the project on the path of the kernels that start in it."""
    paths = [str(PROJECT), str(PROJECT / "notebooks"), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own = {name: str(tmp_path / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")}
    for name, value in {**settings, **own}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_every_notebook_is_tested():
    assert set(NOTEBOOKS) == set(EXPECTED)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    notebook = read(name)
    assert outputs_of(notebook) == []
    assert {cell.get("execution_count") for cell in notebook["cells"]} == {None}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_from_top_to_bottom_and_leaves_its_files(name, folder):
    if name == "results.ipynb":
        shutil.copy(PROJECT / "run_mgfs_davis.ipynb", folder)
    done = execute(name, folder)
    pictures, files = EXPECTED[name]
    assert sum("image/png" in output.get("data", {}) for output in outputs_of(done)) == pictures
    for file in files:
        assert (folder / "outputs" / file).stat().st_size > 0, file


@pytest.mark.slow
def test_results_are_plotted_from_the_points_of_a_tradeoff_file_without_another_run(folder):
    point = {"strategy": "memory_guided", "setting": 0.4, "lookahead": 36, "key_frames": "annotation",
             "skip_rate": 0.75, "fidelity": 0.95, "accuracy": 0.95, "speedup": None}  # fmt: skip
    (folder / "outputs").mkdir()
    (folder / "outputs" / "tradeoff.json").write_text(json.dumps([point, {**point, "setting": 0.2, "skip_rate": 0.5}]))
    execute("results.ipynb", folder)
    assert not (folder / "outputs" / "sweep").exists()
    rows = (folder / "outputs" / "results.csv").read_text().splitlines()
    assert rows[1] == 'outputs/tradeoff.json,"memory_guided, look-ahead 36",0.4,0.75,0.95,0.95,'


@pytest.mark.slow
def test_a_sweep_may_have_one_threshold_of_a_strategy(folder):
    execute("run_mgfs_davis.ipynb", folder, ('{"naive": [0, 0.02, 0.05, 0.1], "memory_guided": [0.1, 0.3, 1.0]}',
                                             '{"naive": [0], "memory_guided": [0.3]}'))  # fmt: skip
    for name in ("naive_0", "memory_guided_0.3"):
        assert (folder / "outputs" / "sweep" / "scores" / f"{name}.json").is_file()


@pytest.mark.slow
def test_colours_of_tools_that_are_one_level_off_are_converted(folder):
    """Id 9 is 192 in DAVIS's palette, 191 in that of the original's scripts."""
    drawn = "for t, labels in enumerate(clip.labels):"
    given = "davis_root, colours = None, np.where(colours == 192, 191, colours)"
    execute("convert.ipynb", folder, (drawn, f"{given}\n    {drawn.replace('clip.labels', '9 * clip.labels')}"))
    assert set(np.unique(read_label_map(folder / "outputs/convert/ids/shapes/00000.png"))) == {0, 9, 18, 27}


class TestClicks:
    """The picture to click on, `notebooks/clicks.py`."""

    @pytest.fixture
    def picture(self, monkeypatch):
        """Clicks on a picture of 40 x 20 pixels, answered by the columns up to the last point, without ipympl."""
        pytest.importorskip("matplotlib", reason=f"the notebooks draw with matplotlib; it {EXTRA}")
        monkeypatch.setitem(sys.modules, "ipympl.backend_nbagg", None)
        monkeypatch.syspath_prepend(str(PROJECT / "notebooks"))
        from clicks import Clicks

        def answer(points, labels):
            assert points.dtype == np.float32 and labels.dtype == np.int32
            return np.tile(np.arange(40) <= points[-1, 0], (20, 1))

        return Clicks(np.zeros((20, 40, 3), np.uint8), answer)

    def test_left_marks_the_object_and_right_what_is_not(self, picture):
        from matplotlib.backend_bases import MouseButton, MouseEvent

        canvas = picture._canvas
        for (x, y), button in (((10, 5), MouseButton.LEFT), ((30, 15), MouseButton.RIGHT)):
            x, y = picture._axes.transData.transform((x, y))
            canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", canvas, x, y, button))
        assert np.allclose(picture.points, [(10, 5), (30, 15)])
        assert picture.labels == [1, 0]
        assert picture.mask.sum() == 31 * 20

    def test_a_click_that_cannot_be_answered_is_forgotten(self, picture):
        picture.click(5, 5)
        picture._answer = None
        with pytest.raises(TypeError):
            picture.click(6, 6)
        assert picture.points == [(5, 5)]
        assert picture.mask.sum() == 6 * 20

"""A picture to click on, for notebooks: left marks the object, right what is not the object."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sam2.utils.video_io import overlay

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Clicks:
    """The clicks on one object of a picture, with the mask that answers them, drawn anew after each.

    Showing it in a notebook gives a picture that can be clicked on where ipympl is installed and the front end plays
    along (JupyterLab, Notebook, VS Code), else one that stands still. `click` does the same from code.

    Attributes:
        points: (x, y) of each click, in pixels. labels: 1 for the object, 0 for what is not.
        mask: the answer to all clicks, (H, W) bool; None before the first.
    """

    def __init__(self, picture: np.ndarray, answer: Answer, *, obj_id: int = 1, width: float = 7.0) -> None:
        """
        Args:
            picture: RGB uint8 (H, W, 3).
            answer: from points (P, 2) float32 and labels (P,) int32 to a mask (H, W), non-zero inside the object.
            obj_id: chooses the mask's colour.
            width: of the drawn picture, inches.
        """
        self.points: list[tuple[float, float]] = []
        self.labels: list[int] = []
        self.mask: np.ndarray | None = None
        self._picture, self._answer, self._obj_id = picture, answer, obj_id
        self._figure = Figure(figsize=(width, width * picture.shape[0] / picture.shape[1]))
        self._canvas = _canvas(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._canvas.mpl_connect("button_press_event", self._on_press)
        self._draw()

    def click(self, x: float, y: float, label: int = 1) -> Clicks:
        """Add a click and answer all of them."""
        points, labels = [*self.points, (float(x), float(y))], [*self.labels, int(label)]
        self.mask = np.asarray(self._answer(np.array(points, np.float32), np.array(labels, np.int32))) > 0
        self.points, self.labels = points, labels
        self._draw()
        return self

    def _on_press(self, event: Any) -> None:
        is_zooming = bool(getattr(getattr(self._canvas, "toolbar", None), "mode", ""))
        if event.inaxes is self._axes and not is_zooming:
            self.click(event.xdata, event.ydata, label=0 if event.button == 3 else 1)

    def _draw(self) -> None:
        shown = self._picture
        if self.mask is not None:
            shown = overlay(shown, (self.mask * self._obj_id).astype(np.uint8))
        self._axes.clear()
        self._axes.imshow(shown)
        self._axes.set_axis_off()
        for label, colour in ((1, "lime"), (0, "red")):
            chosen = [point for point, its in zip(self.points, self.labels, strict=True) if its == label]
            if chosen:
                self._axes.scatter(*zip(*chosen, strict=True), marker="*", s=180, color=colour, edgecolor="white")
        self._canvas.draw_idle()

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if not isinstance(self._canvas, FigureCanvasAgg) or hasattr(self._canvas, "comm"):
            display(self._canvas)
            return
        png = io.BytesIO()
        self._figure.savefig(png, format="png")
        display(Image(data=png.getvalue()))


def _canvas(figure: Figure) -> Any:
    """ipympl's canvas, which sends clicks back, where it is installed; else one that only draws."""
    backend = matplotlib.get_backend()
    plt.switch_backend(backend)  # the inline backend sets itself up when it is loaded, which may not have happened yet
    try:
        from ipympl.backend_nbagg import Canvas, FigureManager
    except ImportError:
        return FigureCanvasAgg(figure)
    matplotlib.use(backend)  # importing ipympl makes it draw every figure of the notebook
    canvas = Canvas(figure)
    FigureManager(canvas, 0)  # ties itself to the canvas: without one, nothing is sent
    canvas.header_visible = False
    canvas.toolbar_visible = False
    return canvas

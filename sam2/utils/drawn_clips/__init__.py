"""Drawn clips: textured things that move before a backdrop, with exact label maps, to train, test and demonstrate with.

`random_clip` draws a clip of which everything follows from a seed and a difficulty, with the statistics of real video
in mind. `draw_clip` draws a clip of so many objects that stand out, and what happens to them as it is asked for.
`write_davis_layout` writes clips as a data set. Both draw with the same parts, one module each:

- `textures`: tiles of colour from fields of noise whose amplitude falls with frequency, of shapes that cover one
  another, cells, strokes and patterns, and for random clips from openly licensed photographs of scikit-image, if it is
  installed (nothing is ever downloaded);
- `shapes`, `figures`: contours that hang on joints; blobs, polygons, boxes, rings, letters, ropes, plants, fences,
  fish, birds, beasts, people, vehicles, cycles, sails on lines; parts of an object have their own textures;
- `motion`: ways (smooth, straight, speeding up, darting, out of sight and back), turns, growth up to threefold,
  foreshortening, still spells, and a camera that pans, zooms, rolls and shakes, with parallax;
- `backdrops`: photographs, textures, landscapes, water that ripples, rooms, plain gradients;
- `casting`: who is in a random clip: objects of 1 % to 40 % of the picture, riders on mounts, loads on lines,
  look-alikes and crowds, things that cross in front, things near the camera, some in the colours of the backdrop, and
  where they are asked for packs on their wearers and thin strings;
- `painting`, `scene`: anti-aliased covers, relief, soft shadows, reflections, smooth deformation, defocus, motion blur;
- `effects`: changing light and colour, haze, vignettes, drifting shade, softness, noise and JPEG.

A clip has T frames of H x W pixels, positions are (x, y) in pixels, y down, and time is counted in frames in which
something moves. A pixel's label is that of the nearest thing that covers at least half of it, shadows and reflections
not counted; it is 0 where that thing has none.
"""

from __future__ import annotations

from sam2.utils.drawn_clips.davis_layout import write_davis_layout
from sam2.utils.drawn_clips.random_clips import MIN_VISIBLE, random_clip
from sam2.utils.drawn_clips.records import DrawnClip
from sam2.utils.drawn_clips.staged_clips import DASH_FRAMES, MAX_OBJECTS, SPEEDS, Event, draw_clip
from sam2.utils.drawn_clips.textures import has_photographs

__all__ = [
    "DASH_FRAMES",
    "MAX_OBJECTS",
    "MIN_VISIBLE",
    "SPEEDS",
    "DrawnClip",
    "Event",
    "draw_clip",
    "has_photographs",
    "random_clip",
    "write_davis_layout",
]

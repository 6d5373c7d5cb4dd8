"""Runs of the tracking command: which videos there are, the results of each on disk, and the work itself.

The results of a run are a folder (`RunFolder`), with a folder per video:

    <video>/task.json        video, prompts and settings; what follows from others is never mixed
    <video>/results.json     all results, for `VideoResults.load`; there when the video was tracked to its end
    <video>/...              the exports, see `EXPORTS`
    <video>/frames.json      what was done with each frame
    <video>/sequence.json    what the video took; written last, so where it lies the video is finished
    <video>/partial.json     instead of results.json, what there is of a video that was not tracked to its end
    <video>/session.pt       what the predictor knew at some frame of it, to go on from there
    <video>/failure.json     why a video is not finished
    summary.json             what all videos together took
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam2.exports import frame_rate
from sam2.frame_skipping import FrameDecision
from sam2.results import FrameResult
from sam2.track_prompts import Prompt, apply
from sam2.utils.davis import is_label_map, label_maps, list_pictures, natural_key, object_folders
from sam2.utils.files import read_json, write_text
from sam2.utils.video_file import estimated_length
from sam2.utils.video_io import IMAGE_SUFFIXES, VIDEO_SUFFIXES, open_source
from sam2.utils.video_writer import require_h264
from sam2.video_results import VideoResults
from sam2.vos_records import Failure, RunFolder

logger = logging.getLogger(__name__)

EXPORTS = {
    "png": "",  # pictures, in the video's folder itself
    "coco": "coco.json",
    "youtube_vis": "youtube_vis.json",
    "mp4": "overlay.mp4",
    "npz": "masks.npz",
    "json": "results.json",
}
"""Where the exports of a video are in its folder, by format."""

SAVE_SPACING = 20
"""How many times as long as a save takes is tracked before the next one."""

_UNFINISHED = ("partial.json", "session.pt", "failure.json")


# Which videos


class Clip(NamedTuple):
    """A video, and the name of its results."""

    name: str
    path: Path


def find_clips(arguments: Sequence[str]) -> list[Clip]:
    """The videos that arguments name: files, folders of frames, folders of these, and patterns of them.

    A video is called like its file without the ending, or like its folder; where several are called alike, the folder
    that they are in comes before.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no video, or videos that cannot be told apart.
    """
    paths: dict[Path, Path] = {}  # by absolute path: named twice is meant once
    for argument in arguments:
        for path in _matching(argument):
            for found in _videos_at(path):
                paths.setdefault(found.resolve(), found)
    short = Counter(_stem(path) for path in paths)
    names = {path: _stem(path) if short[_stem(path)] == 1 else f"{path.parent.name}_{_stem(path)}" for path in paths}
    for name, count in Counter(names.values()).items():
        if count > 1:
            alike = [str(found) for path, found in paths.items() if names[path] == name]
            raise ValueError(f"VIDEO: the results of {' and '.join(alike)} would both be called {name!r}")
    return [Clip(names[path], found) for path, found in paths.items()]


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _matching(argument: str) -> list[Path]:
    path = Path(argument)
    if path.exists() or not glob.has_magic(argument):
        return [path]
    found = sorted(map(Path, glob.glob(argument, recursive=True)), key=lambda each: (natural_key(each), str(each)))
    if not found:
        raise FileNotFoundError(f"VIDEO: nothing matches {argument}")
    return found


def _videos_at(path: Path) -> list[Path]:
    """A video file, a folder of frames, or the videos in a folder."""
    if not path.exists():
        raise FileNotFoundError(f"VIDEO: no such file or folder: {path}")
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(f"VIDEO: {path} is a single picture; name the folder of the frames")
        if path.suffix and path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"VIDEO: {path} is no video file that is known ({', '.join(VIDEO_SUFFIXES)})")
        return [path]
    entries = sorted((each for each in path.iterdir() if not each.name.startswith(".")), key=natural_key)
    files = [each for each in entries if each.is_file() and each.suffix.lower() in VIDEO_SUFFIXES]
    if list_pictures(path, IMAGE_SUFFIXES):
        if files:
            raise ValueError(f"VIDEO: {path} holds pictures and videos, {files[0].name} for one: name what is meant")
        return [path]
    folders = [each for each in entries if each.is_dir() and list_pictures(each, IMAGE_SUFFIXES)]
    if not files and not folders:
        raise ValueError(f"VIDEO: {path} holds neither frames ({', '.join(IMAGE_SUFFIXES)}) nor videos")
    return files + folders


def declared_length(path: Path) -> int:
    """How many frames a video has: exact for a folder, about for a file, at the cost of opening it."""
    return len(list_pictures(path, IMAGE_SUFFIXES)) if path.is_dir() else max(estimated_length(path.resolve()), 1)


def check_formats(formats: Sequence[str]) -> None:
    """Raises ImportError where a format needs what is not installed: now, not when the masks are there."""
    if "mp4" in formats:
        try:
            require_h264()
        except ImportError as error:
            raise ImportError(f"--format mp4: {error}") from error


def check_output(output: Path, arguments: Sequence[str], clips: Sequence[Clip]) -> None:
    """See that results stay apart from the videos.

    Args:
        output: the folder of the run.
        arguments: as given to `find_clips`.
        clips: what it found.

    Raises:
        ValueError: masks would lie among frames, or where the next run looks for videos, or in place of a video.
    """
    for path in (path for argument in arguments for path in _matching(argument)):
        if path.is_dir() and path.resolve() == output.resolve():
            raise ValueError(
                f"--output: {output} is a VIDEO too, results in it would be taken for videos; name another folder"
            )
    for clip in clips:
        if clip.path.is_dir() and (output / clip.name).resolve() == clip.path.resolve():
            raise ValueError(f"--output: {output / clip.name} holds the frames of a video; name another folder")
        if (output / clip.name / EXPORTS["mp4"]).resolve() == clip.path.resolve():
            raise ValueError(f"--output: {clip.path} is where the overlay of this video would be; name another folder")


def files_sha256(path: Path) -> str:
    """A digest of the names, sizes and times of a video's files, which changes with them: nothing is read."""
    files = list_pictures(path, IMAGE_SUFFIXES) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files]
    return hashlib.sha256(json.dumps([(name, s.st_size, s.st_mtime_ns) for name, s in found]).encode()).hexdigest()


# The results of one video on disk


class ClipFolder:
    """The results of one video: what is there, and what is still to be done.

    Args:
        run: the folder of the run.
        clip: the video.
        prompts: of the video.
    """

    def __init__(self, run: RunFolder, clip: Clip, prompts: Sequence[Prompt]) -> None:
        self.run, self.clip, self.prompts = run, clip, prompts
        self.path = run.path / clip.name

    @functools.cached_property
    def task(self) -> dict[str, Any]:
        """What the results follow from; the video as it was when this was first asked for."""
        return {
            "video": str(self.clip.path),
            "files": files_sha256(self.clip.path),
            "prompts": [prompt.to_json() for prompt in self.prompts],
            "settings": dict(self.run.settings),
        }

    def differing(self, results: VideoResults) -> list[str]:
        """What of the task was another one when the video was begun here, or is another one for these results.

        They are from one run unless something went wrong, as when two runs wrote here at once where nothing is locked.
        """
        begun = read_json(self.path / "task.json") or {}
        return [what for what in self.task if not (self._is_same(what, begun) and self._is_same(what, results.about))]

    def _is_same(self, what: str, task: Mapping[str, Any]) -> bool:
        if what == "video":  # wherever the path starts from
            return Path(task.get(what, "")).resolve() == self.clip.path.resolve()
        return task.get(what) == self.task[what]

    def check(self, results: VideoResults) -> None:
        """Raises ValueError where these, which lie here, are the results of another task."""
        if others := self.differing(results):
            named = ["the video's files, which were changed since" if what == "files" else what for what in others]
            raise ValueError(
                f"the results in {self.path} differ in {' and '.join(named)}: leave out --resume to replace them"
            )

    def check_place(self) -> None:
        """Raises ValueError where masks lie that no run left here, as an annotation: they would be written over."""
        if not (self.path / "task.json").exists():
            for path in label_maps(self.path):
                raise ValueError(f"--output: {path} is a mask that no run left there; name another folder")

    @property
    def is_tracked(self) -> bool:
        """Whether the video was tracked to its end."""
        return (self.path / EXPORTS["json"]).exists()

    def clear(self) -> None:
        """Forget what a run left here."""
        self.run.clear(self.clip.name)
        if (self.path / "task.json").exists():
            self._clear_pictures()
        names = [*_UNFINISHED, "frames.json", *(name for name in EXPORTS.values() if name)]
        leftovers = self.path.glob(".*.part*")
        for path in [*(self.path / name for name in names), *leftovers]:
            path.unlink(missing_ok=True)
        (self.path / "task.json").unlink(missing_ok=True)  # last: pictures are known by it for those of a run

    def _clear_pictures(self) -> None:
        """Remove label maps and the masks of single objects; any other picture or file stays."""
        folders = object_folders(self.path)
        for folder in [self.path, *folders]:
            for path in [*filter(is_label_map, folder.glob("*.png")), *folder.glob(".*.part*")]:
                path.unlink(missing_ok=True)
        for folder in folders:
            if not any(folder.iterdir()):
                folder.rmdir()

    def begin(self) -> None:
        """Put the task on record."""
        write_text(self.path / "task.json", json.dumps(self.task, indent=1) + "\n")

    def save_session(self, predictor: Any, state: Any, results: VideoResults) -> None:
        """Save what `load_session` goes on from. The results come first: they may be ahead of the session."""
        results.save(self.path / "partial.json", "json")
        predictor.save(state, self.path / "session.pt")

    def load_session(self, predictor: Any) -> tuple[Any, VideoResults] | None:
        """The session and the results up to its last frame, where a run of the same task left them; else None."""
        session, partial = self.path / "session.pt", self.path / "partial.json"
        if not (session.exists() and partial.exists()):
            return None
        try:
            results = VideoResults.load(partial)
            if self.differing(results):
                return None
            state = predictor.load(session, self.clip.path)
        except ValueError as error:
            logger.warning("%s is tracked from its first frame again: %s", self.clip.name, error)
            return None
        for t in set(results.stored) - set(state.decision_of):
            del results.stored[t]
        return state, results

    def load(self) -> VideoResults | None:
        """The results, where the video was tracked to its end."""
        return VideoResults.load(self.path / EXPORTS["json"]) if self.is_tracked else None

    def missing(self, formats: Sequence[str], fps: float | None) -> list[str]:
        """The formats that are not there, or not at this rate; all of them where the video is not finished."""
        if not (self.is_tracked and self.run.is_done(self.clip.name)):
            return list(formats)
        return [each for each in formats if not self._has(each, fps)]

    def _has(self, format: str, fps: float | None) -> bool:
        if format == "png":
            return any(self.path.glob("[!.]*.png")) or any(self.path.glob("*/[!.]*.png"))
        path = self.path / EXPORTS[format]
        if format == "mp4" and path.exists():
            shown, wanted = _rate(path), fps or _rate(self.clip.path)
            return shown is None or (wanted is not None and math.isclose(shown, wanted, rel_tol=0.01))
        return path.exists()

    def export(self, results: VideoResults, formats: Sequence[str], fps: float | None) -> list[str]:
        """Write the results in these formats; returns what went wrong, a line per format, after trying all of them."""
        errors = []
        for format in formats:
            try:
                results.save(self.path / EXPORTS[format], format, video=self.clip.path, fps=fps)
            except Exception as error:  # whatever one format fails by, the others are written
                logger.info("Writing %s of %s failed", format, self.clip.name, exc_info=True)
                errors.append(Failure.of(f"format {format}", error).text)
        return errors

    def finish(self, results: VideoResults) -> None:
        """Put the video on record as finished."""
        for name in _UNFINISHED:
            (self.path / name).unlink(missing_ok=True)
        self.run.finish(self.clip.name, results.decisions, results.about["seconds"])


def _rate(video: Path) -> float | None:
    """Frames per second of a video; 0 where it cannot be read, None of a single frame."""
    try:
        with contextlib.closing(open_source(video)) as source:
            return frame_rate(source) if len(source) > 1 else None
    except (OSError, ValueError):
        return 0.0


# The work

OnFrame = Callable[[FrameDecision], None]


class Work(NamedTuple):
    """What all videos of a run share.

    predictor: builds it, or returns the one that was built.
    save_every: seconds of work that a kill may cost; a session is saved so often, see `is_save_due`.
    """

    predictor: Callable[[], Any]
    formats: Sequence[str]
    fps: float | None
    resume: bool
    direction: str
    save_every: float
    on_frame: OnFrame


def do_clip(folder: ClipFolder, work: Work) -> list[str]:
    """Track a video and write its exports, or what of both is not done yet; returns what went wrong with exports.

    Raises:
        BlockingIOError: another process does this video.
        Exception: whatever a video can fail by. What lay here stays where the video cannot be begun; where it ends
            midway, the results up to there are in `partial.json`.
    """
    with folder.run.lock(folder.clip.name):
        return _do_locked(folder, work)


def _do_locked(folder: ClipFolder, work: Work) -> list[str]:
    results = folder.load() if work.resume else None
    if results is not None:
        folder.check(results)
    missing = folder.missing(work.formats, work.fps) if work.resume else work.formats
    if not missing:
        return []
    if results is None:
        results = track_clip(folder, work)
        results.save(folder.path / EXPORTS["json"], "json")
    # Not finished while exports are added: killed meanwhile, they are written again.
    folder.run.clear(folder.clip.name)
    errors = folder.export(results, [each for each in missing if each != "json"], work.fps)
    if not errors:
        folder.finish(results)
    return errors


def track_clip(folder: ClipFolder, work: Work) -> VideoResults:
    """Track a video, from where an earlier run left it; what there is before an error is kept in `partial.json`."""
    predictor = work.predictor()
    predictor.skipping = folder.run.options
    start = last_save = time.perf_counter()
    save_took = 0.0
    earlier = folder.load_session(predictor) if work.resume else None
    state, results = start_session(folder, predictor) if earlier is None else earlier
    spent = results.about.get("seconds", 0.0)
    try:
        for decision in results.decisions:
            work.on_frame(decision)
        for result in answers(predictor, state, results, work.direction):
            results.add(result)
            work.on_frame(result.decision)
            now = time.perf_counter()
            results.about["seconds"] = spent + now - start
            if is_save_due(now - last_save, work.save_every, save_took) and can_go_on(folder, result.decision):
                folder.save_session(predictor, state, results)
                last_save = time.perf_counter()
                save_took = last_save - now
    except BaseException:
        if results.stored:
            results.save(folder.path / "partial.json", "json")
        raise
    finally:
        state.close()
    return results


def start_session(folder: ClipFolder, predictor: Any) -> tuple[Any, VideoResults]:
    """A session with the prompts, and no results yet; those of earlier runs go once it is known to begin."""
    folder.check_place()
    task = folder.task  # of the files as they are before any is read
    state = predictor.init_state(folder.clip.path)
    try:
        paths = getattr(state.frames.source, "paths", None)
        names = None if paths is None else [path.name for path in paths]
        results = VideoResults(name=folder.clip.name, frame_names=names, about=task)
        apply(predictor, state, folder.prompts)
        folder.clear()
        folder.begin()
    except BaseException:
        state.close()
        raise
    return state, results


def answers(predictor: Any, state: Any, results: VideoResults, direction: str) -> Iterator[FrameResult]:
    """The results of the frames that have none yet."""
    if not results.stored:
        return predictor.propagate_results(state, direction=direction, progress=False)
    following = max(results.stored) + 1
    if not state.frames.has(following):
        return iter(())
    return predictor.propagate_results(state, following, progress=False)


def is_save_due(elapsed: float, save_every: float, save_took: float) -> bool:
    """Whether to save a session again, `elapsed` seconds after the last save, which took `save_took` seconds.

    Each save writes all there is, and takes longer than the one before: so that a long video is not spent on saving, it
    is given a twentieth of the time.
    """
    return elapsed >= max(save_every, SAVE_SPACING * save_took)


def can_go_on(folder: ClipFolder, decision: FrameDecision) -> bool:
    """Whether a session that is saved after this frame leads to the same masks: where nothing but tracking forward is
    left."""
    first_prompts = {prompt.obj_id: prompt.frame for prompt in reversed(folder.prompts)}
    return decision.frame >= max(first_prompts.values())


def do_clips(clips: Sequence[Clip], folder_of: Callable[[Clip], ClipFolder], work: Work) -> list[Failure]:
    """Do one video after the other; one that fails stops no other."""
    failures = []
    for clip in clips:
        try:
            errors = do_clip(folder_of(clip), work)
        except Exception as error:  # a damaged file, a prompt that does not fit, memory: whatever one video fails by
            logger.info("%s failed", clip.name, exc_info=True)
            failures.append(Failure.of(clip.name, error))
        else:
            failures += [Failure(clip.name, "; ".join(errors))] if errors else []
    return failures

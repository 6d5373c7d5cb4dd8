"""The results of runs over sequences, on disk: masks, what was done with each frame, and what it took.

The results of one setting are a folder (`RunFolder`):

    <sequence>/<frame>.png      label map of a frame
    <sequence>/frames.json      what was done with each frame
    <sequence>/sequence.json    what the sequence took; written last, so where it lies the sequence is finished
    <sequence>/failure.json     why a sequence is not finished
    summary.json                what all sequences together took

A file appears at once or not at all, and each sequence has its files to itself: processes that share a run need no
other agreement than who tracks which sequence, and any of them, on any node that sees the folder, can sum up. A lock
on each sequence keeps out processes of other runs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from sam2 import __version__
from sam2.frame_skipping import SKIPPED, FrameDecision, SkipOptions
from sam2.utils.files import locked, read_json, write_text

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """Frames, how many of them the network saw, and the seconds that took (of all processes together)."""

    frames: int
    processed: int
    seconds: float

    @property
    def skip_rate(self) -> float:
        """Share of frames that the network did not see, 0 to 1."""
        return 1.0 - self.processed / max(self.frames, 1)

    @property
    def fps(self) -> float:
        """Frames per second of one process; 0 where no time was taken."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def expected_speedup(self) -> float:
        """What skipping gains where the network is all that takes time: 1 / (1 - skip rate)."""
        return self.frames / max(self.processed, 1)

    def to_json(self) -> dict[str, float]:
        return {
            "frames": self.frames,
            "processed": self.processed,
            "skip_rate": round(self.skip_rate, 6),
            "seconds": round(self.seconds, 6),
            "fps": round(self.fps, 3),
        }


class SequenceRecord(NamedTuple):
    """What one finished sequence took.

    inputs: a digest of what it was made from; "" if that is not on record. run: the token of the run that finished it.
    """

    name: str
    frames: int
    processed: int
    seconds: float
    device: str
    is_plan: bool
    settings: Mapping[str, Any]
    inputs: str = ""
    run: str = ""

    @property
    def work(self) -> Work:
        return Work(self.frames, self.processed, self.seconds)

    @classmethod
    def read(cls, path: Path) -> SequenceRecord | None:
        """Read a `sequence.json`; None where there is none.

        Raises:
            ValueError: the file is not such a record.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the record of a sequence ({error}); remove it to start anew") from error


class Summary(NamedTuple):
    """What a run took.

    missing: sequences of the run that are not finished.
    """

    folder: Path
    records: Sequence[SequenceRecord]
    missing: Sequence[str]

    @property
    def work(self) -> Work:
        """All sequences together."""
        return Work(*(sum(column) for column in zip((0, 0, 0.0), *(r.work for r in self.records), strict=True)))


class Failure(NamedTuple):
    """A sequence that is not finished, and why.

    is_taken: another run is at work on it, so that its folder is that run's.
    """

    name: str
    reason: str
    is_taken: bool = False

    @classmethod
    def of(cls, name: str, error: Exception) -> Failure:
        """What an error says, in one line."""
        return cls(name, " ".join(str(error).split()) or type(error).__name__, isinstance(error, BlockingIOError))

    @property
    def text(self) -> str:
        return f"{self.name}: {self.reason}"


class Outcome(NamedTuple):
    """What a run came to.

    summaries: of each setting. own: the failures of this process. failures: those of all that are known. to_come: what
    other processes have not done yet.
    """

    summaries: Sequence[Summary]
    own: Sequence[Failure]
    failures: Sequence[Failure]
    to_come: Sequence[str]

    @property
    def status(self) -> int:
        """The exit status. Only the process that finishes last has one to report: torchrun stops all when one does."""
        return int(bool(self.failures) and not self.to_come)

    def report_failures(self) -> None:
        """Print what failed, a line for each reason: of all processes in the one that finishes last."""
        names_of: dict[str, list[str]] = {}
        for failure in self.own if self.to_come else self.failures:
            names_of.setdefault(failure.reason, []).append(failure.name)
        for reason, names in names_of.items():
            print(f"failed: {', '.join(names)}: {reason}", file=sys.stderr)


class RunFolder:
    """The results of one setting.

    Args:
        path: the folder; made when the first file is written.
        options: when and how frames are skipped.
        settings: of `ModelFiles.settings`.
        device: as it is put on record.
        is_plan: decisions only, without masks.
        token: what all processes of this run put on their records, see `run_token`.
        resume: what earlier runs finished counts as finished.
    """

    def __init__(
        self,
        path: Path,
        options: SkipOptions,
        settings: Mapping[str, Any],
        device: str,
        *,
        is_plan: bool = False,
        token: str = "",
        resume: bool = False,
    ) -> None:
        self.path, self.options, self.settings = path, options, settings
        self.device, self.is_plan = device, is_plan
        self.token, self.resume = token, resume

    def record(self, name: str) -> SequenceRecord | None:
        """What a sequence took, whatever its settings and run; None if it is not finished."""
        return SequenceRecord.read(self.path / name / "sequence.json")

    def is_done(self, name: str) -> bool:
        """Whether a sequence of this run is finished, as far as its record says."""
        record = self.record(name)
        return record is not None and self._is_ours(record) and self._counts(record)

    def check(self, names: Sequence[str]) -> None:
        """See that work on these sequences does not mix with, or replace, what it should not.

        Raises:
            ValueError: a plan where there are masks; or, to be resumed, sequences tracked with other settings.
        """
        for name in names:
            record = self.record(name)
            if record is None:
                continue
            if self.is_plan and not record.is_plan:
                raise ValueError(f"{self.path} holds the masks of a run: give the plan another --output")
            if self.resume and record.is_plan == self.is_plan and not self._is_ours(record):
                keys = {**record.settings, **self.settings}
                values = [(key, record.settings.get(key), self.settings.get(key)) for key in keys]
                differing = ", ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in values if old != new)
                raise ValueError(f"cannot resume in {self.path}: {name} has other settings: {differing}")

    def is_finished(self, name: str, stems: Sequence[str], inputs: str = "") -> bool:
        """Whether a sequence of these frames needs no more work: all its files are there, and made from these inputs.

        Args:
            inputs: as given to `finish`.
        """
        record = self.record(name)
        if record is None or not self._is_ours(record):
            return False
        if record.inputs != inputs:
            logger.warning("%s was tracked from other pictures: it is tracked anew", name)
            return False
        wanted = {"frames.json"} if self.is_plan else {"frames.json", *(f"{stem}.png" for stem in stems)}
        return record.frames == len(stems) and wanted <= set(os.listdir(self.path / name))

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes away from a sequence's files. Entering raises BlockingIOError where one is at work."""
        return locked(self.path / name / ".lock")

    def clear(self, name: str) -> None:
        """Forget that a sequence was finished, and what a killed process left unfinished of its files."""
        (self.path / "summary.json").unlink(missing_ok=True)
        (self.path / name / "sequence.json").unlink(missing_ok=True)
        for leftover in (self.path / name).glob(".*.part*"):
            leftover.unlink(missing_ok=True)

    def finish(self, name: str, decisions: Sequence[FrameDecision], seconds: float, inputs: str = "") -> None:
        """Put a sequence on record. `frames.json` comes first: the record says that all else is there.

        Args:
            inputs: a digest of what the sequence was made from, by which a later run knows it again.
        """
        lines = [
            json.dumps(
                {"frame": d.frame, "action": d.action, "change": round(d.change, 6), "seconds": round(d.seconds, 6)}
            )
            for d in decisions
        ]
        write_text(self.path / name / "frames.json", "[\n" + ",\n".join(lines) + "\n]\n")
        processed = sum(d.action not in SKIPPED for d in decisions)
        work = (len(decisions), processed, round(seconds, 6))
        record = SequenceRecord(name, *work, self.device, self.is_plan, self.settings, inputs, self.token)
        write_text(self.path / name / "sequence.json", json.dumps(record._asdict(), indent=1) + "\n")

    def summarise(self, names: Sequence[str]) -> Summary:
        """Sum up the finished sequences in `summary.json`, those of the run and whatever else lies in the folder.

        Every rank does so at its end. The one that comes last sees all records, and none can undo its work: who finds
        new records after writing writes again.
        """
        while True:
            summary = self._sum_up(names)
            write_text(self.path / "summary.json", json.dumps(self._content(summary), indent=1) + "\n")
            if self._sum_up(names) == summary:
                return summary

    def _sum_up(self, names: Sequence[str]) -> Summary:
        found = (SequenceRecord.read(path) for path in sorted(self.path.glob("*/sequence.json")))
        wanted = set(names)
        # What an earlier run finished of this one's is still to come: its process has not reached it yet.
        records = [r for r in found if r and self._is_ours(r) and (r.name not in wanted or self._counts(r))]
        missing = sorted(wanted - {record.name for record in records})
        return Summary(self.path, records, missing)

    def _content(self, summary: Summary) -> dict[str, Any]:
        expected = {"expected_speedup": round(summary.work.expected_speedup, 3)} if self.is_plan else {}
        return {
            **summary.work.to_json(),
            **expected,
            "plan": self.is_plan,
            "settings": dict(self.settings),
            "versions": versions(),
            "device": ", ".join(sorted({record.device for record in summary.records})) or self.device,
            "sequences": {r.name: r.work.to_json() for r in summary.records},
            "missing": list(summary.missing),
        }

    def _is_ours(self, record: SequenceRecord) -> bool:
        return record.settings == self.settings and record.is_plan == self.is_plan

    def _counts(self, record: SequenceRecord) -> bool:
        return self.resume or record.run == self.token

    # What went wrong

    def forget_failures(self, names: Sequence[str]) -> None:
        """Forget the failures of earlier runs. A process does so for its own: others may have failed already."""
        for name in names:
            (self.path / name / "failure.json").unlink(missing_ok=True)
            for note in (self.path / name).glob(".failure.*.json"):
                note.unlink(missing_ok=True)

    def write_failures(self, failures: Sequence[Failure]) -> None:
        """Put failures on record, for the process that finishes last."""
        for failure in failures:
            path = self._note(failure.name) if failure.is_taken else self.path / failure.name / "failure.json"
            write_text(path, json.dumps({"reason": failure.reason, "run": self.token}) + "\n")

    def read_failures(self, names: Sequence[str]) -> list[Failure]:
        """The failures of this run: those of an earlier one lie there until their process has begun."""
        places = ((name, path) for name in names for path in (self.path / name / "failure.json", self._note(name)))
        found = {name: content["reason"] for name, path in places if (content := self._failure_at(path))}
        return [Failure(name, reason) for name, reason in found.items()]

    def drop_notes(self, names: Sequence[str]) -> None:
        """Remove what the processes of this run left for each other in folders that are another run's."""
        for name in names:
            self._note(name).unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        """Where a failure is put on record if the folder is another run's, who has a `failure.json` of its own."""
        return self.path / name / f".failure.{self.token}.json"

    def _failure_at(self, path: Path) -> Mapping[str, Any] | None:
        content = read_json(path)
        return content if content and content.get("run") == self.token else None


def versions() -> dict[str, str]:
    """Versions of what the answers depend on."""
    return {
        "sam2": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "opencv": cv2.__version__,
    }

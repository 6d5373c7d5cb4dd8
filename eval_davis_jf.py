"""Score predicted masks by the DAVIS 2017 protocol: J&F per object, per sequence and overall.

    python eval_davis_jf.py --gt_root DAVIS --pred1 runs/off
    python eval_davis_jf.py --gt_root DAVIS --pred1 runs/off --pred2 runs/skip_0.10 --json scores.json

A prediction folder holds `<sequence>/<frame>.png`, label maps of object ids (palette, grey, or in DAVIS's colours).
With two of them, the second is compared with the first: the difference of their scores, its fidelity (its J&F with the
first in the annotation's place) and, where both hold the `summary.json` of their run, skip rate and speed-up.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam2.utils.davis import DavisRoot
from sam2.utils.files import write_text
from sam2.utils.vos_metrics import Evaluation, Scores, SequenceScores, evaluate, overall_scores

FIGURES = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")


class RunSummary(NamedTuple):
    """What `summary.json` says of the run that wrote a prediction folder."""

    frames: int
    seconds: float
    skip_rate: float
    device: str | None

    @classmethod
    def read(cls, folder: Path) -> RunSummary | None:
        """None where there is no such file.

        Raises:
            ValueError: the file does not hold frames, seconds and skip_rate.
        """
        path = folder / "summary.json"
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            device = content.get("device")
            return cls(
                int(content["frames"]),
                float(content["seconds"]),
                float(content["skip_rate"]),
                None if device is None else str(device),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: not the summary of a run with frames, seconds and skip_rate ({error!r})"
            ) from error


class Comparison(NamedTuple):
    """The second prediction beside the first. Figures that the runs left no record of are None."""

    difference: float
    skip_rates: tuple[float | None, float | None]
    speedup: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it scored, 2 with one line on stderr when it refused."""
    args = parse_args(argv)
    folders = [folder for folder in (args.pred1, args.pred2) if folder is not None]
    try:
        for flag, folder in zip(("--gt_root", "--pred1", "--pred2"), (args.gt_root, *folders), strict=False):
            if not folder.is_dir():
                raise FileNotFoundError(f"{flag}: no such folder: {folder}")
        root = DavisRoot.open(args.gt_root, resolution=args.resolution)
        result = evaluate(root, folders, split=args.split, processes=args.processes)
        comparison = compare(result, folders) if len(folders) == 2 else None
        if args.json is not None:
            write_text(args.json, json.dumps(to_json(result, comparison), indent=1) + "\n")
        if args.csv is not None:
            write_csv(args.csv, result)
    except (ValueError, OSError) as error:
        print(f"eval_davis_jf: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    labels = [folder.name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    print("\n".join(report(result, comparison, labels)))
    for label, sequences in zip(labels, result.predictions, strict=True):
        for name in never_predicted(sequences):
            print(f"note: {label} never shows {name}, which scores as lost", file=sys.stderr)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="J&F by the DAVIS 2017 protocol (first and last frame left out).")
    add = parser.add_argument
    add(
        "--gt_root",
        type=Path,
        required=True,
        help="DAVIS-layout folder: Annotations/<resolution>/<sequence>/<frame>.png",
    )
    add("--pred1", type=Path, required=True, help="predictions: <sequence>/<frame>.png")
    add("--pred2", type=Path, help="other predictions, to be compared with the first")
    add(
        "--split",
        default="val",
        help="ImageSets/<2017 or other>/<split>.txt (default: %(default)s; no ImageSets: every sequence)",
    )
    add("--resolution", help="folder under Annotations (default: 480p if there, else the only one)")
    add("--json", type=Path, help="write overall and per-object scores to this file")
    add("--csv", type=Path, help="write all scores to this file")
    add("--processes", type=positive_int, default=usable_cpus(), help="at most this many (default: %(default)s)")
    return parser.parse_args(argv)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compare(result: Evaluation, folders: Sequence[Path]) -> Comparison:
    """Set the second prediction beside the first; times are compared per frame, and on one device only."""
    first, second = (overall_scores(sequences).mean for sequences in result.predictions)
    before, after = (RunSummary.read(folder) for folder in folders)
    speedup = None
    if before and after and before.device == after.device and min(before.frames, after.frames, after.seconds) > 0:
        speedup = (before.seconds / before.frames) / (after.seconds / after.frames)
    skip_rates = (before.skip_rate if before else None, after.skip_rate if after else None)
    return Comparison(second - first, skip_rates, speedup)


def never_predicted(sequences: Sequence[SequenceScores]) -> list[str]:
    return [f"{item.sequence}_{obj.obj_id}" for item in sequences for obj in item.objects if not obj.is_predicted]


def to_json(result: Evaluation, comparison: Comparison | None) -> dict[str, Any]:
    """The scores under "pred1", "pred2" and "fidelity", each with "overall" and "objects", and the "comparison"."""
    content: dict[str, Any] = {
        f"pred{i}": scores_to_json(sequences) for i, sequences in enumerate(result.predictions, start=1)
    }
    if result.fidelity is not None:
        content["fidelity"] = scores_to_json(result.fidelity)
    if comparison is not None:
        content["comparison"] = {
            "J&F": comparison.difference,
            "skip_rate": {"pred1": comparison.skip_rates[0], "pred2": comparison.skip_rates[1]},
            "speedup": comparison.speedup,
        }
    return content


def scores_to_json(sequences: Sequence[SequenceScores]) -> dict[str, Any]:
    def both(scores: Scores) -> dict[str, dict[str, float]]:
        return {"J": scores.region._asdict(), "F": scores.contour._asdict()}

    overall = overall_scores(sequences)
    return {
        "overall": {"J&F": overall.mean, **both(overall)},
        "objects": {f"{item.sequence}_{obj.obj_id}": both(obj.scores) for item in sequences for obj in item.objects},
    }


def write_csv(path: Path, result: Evaluation) -> None:
    """One row per object, sequence (object empty) and prediction (sequence "overall")."""
    tables = [(f"pred{i}", sequences) for i, sequences in enumerate(result.predictions, start=1)]
    if result.fidelity is not None:
        tables.append(("fidelity", result.fidelity))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prediction", "sequence", "object", *FIGURES])
        for name, sequences in tables:
            for sequence, obj_id, scores in rows(sequences):
                writer.writerow([name, sequence, obj_id, *figures(scores)])


def rows(sequences: Sequence[SequenceScores]) -> Iterator[tuple[str, str, Scores]]:
    """Every line of a table: (sequence, object id or "", scores), a sequence before its objects, overall last."""
    for item in sequences:
        yield item.sequence, "", item.scores
        for obj in item.objects:
            yield item.sequence, str(obj.obj_id), obj.scores
    yield "overall", "", overall_scores(sequences)


def figures(scores: Scores) -> tuple[float, ...]:
    return scores.mean, *scores.region, *scores.contour


def report(result: Evaluation, comparison: Comparison | None, labels: Sequence[str]) -> Iterator[str]:
    """The lines of the tables on stdout."""
    for label, sequences in zip(labels, result.predictions, strict=True):
        yield from score_table(label, sequences)
        yield ""
    if comparison is not None and result.fidelity is not None:
        yield from comparison_table(result, comparison, labels)


def score_table(label: str, sequences: Sequence[SequenceScores]) -> Iterator[str]:
    lines = list(rows(sequences))
    names = [f"  object {obj_id}" if obj_id else sequence for sequence, obj_id, _ in lines]
    width = max(len(name) for name in (*names, label))
    yield f"{label:{width}}" + "".join(f"{figure:>10}" for figure in FIGURES)
    for name, (_, _, scores) in zip(names, lines, strict=True):
        if name == "overall":
            yield "-" * (width + 10 * len(FIGURES))
        yield f"{name:{width}}" + "".join(f"{figure:10.4f}" for figure in figures(scores))


def comparison_table(result: Evaluation, comparison: Comparison, labels: Sequence[str]) -> Iterator[str]:
    """J&F of both predictions, their difference, and the fidelity of the second, per sequence and overall."""
    assert result.fidelity is not None
    columns = [
        [scores for _, obj_id, scores in rows(sequences) if not obj_id]
        for sequences in (*result.predictions, result.fidelity)
    ]
    names = [item.sequence for item in result.fidelity] + ["overall"]
    title = f"{labels[1]} beside {labels[0]}"
    width = max(len(name) for name in (*names, title))
    yield f"{title:{width}}" + "".join(f"{head:>12}" for head in ("J&F first", "J&F second", "difference", "fidelity"))
    for name, first, second, fidelity in zip(names, *columns, strict=True):
        if name == "overall":
            yield "-" * (width + 12 * 4)
        values = f"{first.mean:12.4f}{second.mean:12.4f}{second.mean - first.mean:+12.4f}{fidelity.mean:12.4f}"
        yield f"{name:{width}}{values}"
    skip_rates = [f"{'-' if rate is None else format(rate, '.1%'):>12}" for rate in comparison.skip_rates]
    yield f"{'skip rate':{width}}" + "".join(skip_rates)
    speedup = "-" if comparison.speedup is None else f"{comparison.speedup:.2f}x"
    yield f"{'speed-up':{width}}{'':12}{speedup:>12}"


if __name__ == "__main__":
    sys.exit(main())

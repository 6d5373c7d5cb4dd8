"""What skipping gains in time: at settled skip rates, in turns."""

import json

import numpy as np
import pytest

from benchmarks import skip_speedup
from benchmarks.skip_speedup import OFF, Paced, Setting, Speed, main, speed, table
from benchmarks.tradeoff import Turn
from sam2.frame_skipping import FrameDecision
from sam2.utils.change_detection import STRATEGIES, Verdict
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from sam2.vos_runs import TrackedFrame


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_davis_layout(tmp_path_factory.mktemp("davis"), {"a": draw_clip(6, 64, 96, num_objects=1, seed=4)})


def test_every_strategy_is_measured_at_every_pace_on_the_first_frames(root, tmp_path, capsys):
    output = tmp_path / "speed.json"
    options = ["--davis_root", str(root.root), "--sequence", "a", "--frames", "5", "--json", str(output)]
    assert main(options) == 0
    speeds = json.loads(output.read_text())
    rates = [(each["strategy"], each["step"], each["skip_rate"]) for each in speeds]
    assert rates == [("off", 1, 0.0), *((name, *pace) for name in STRATEGIES for pace in ((2, 2 / 5), (4, 3 / 5)))]
    assert speeds[0]["speedup"] == 1.0 and speeds[0]["skipped_ms"] is None
    assert "5 frames of a, 1 objects; embedded model, 352 pixels, float32; cpu" in capsys.readouterr().out


def test_a_paced_strategy_measures_every_frame_and_decides_by_age():
    class Strategy:
        def decide(self, evidence):
            return Verdict(True, 0.25, "measured")

    class Age:
        def __init__(self, age):
            self.age = age

    verdicts = [Paced(Strategy(), 3).decide(Age(age)) for age in (1, 2, 3)]
    assert [verdict.skip for verdict in verdicts] == [True, True, False]
    assert {verdict.change for verdict in verdicts} == {0.25}


def test_only_memory_guided_carries_masks():
    options = {name: Setting(name, 2).options() for name in STRATEGIES}
    assert [name for name, each in options.items() if each.warps] == ["memory_guided"]
    assert not OFF.options().is_on


def test_speed_is_that_of_all_frames_and_medians_leave_out_the_prompted_one():
    actions = [("prompted", 0.1), ("reused", 0.02), ("processed", 2.0), ("reused", 0.04), ("processed", 3.0)]
    frames = [TrackedFrame(np.zeros((1, 1)), FrameDecision(t, *a, "", s)) for t, (a, s) in enumerate(
        [((action, 0.0), seconds) for action, seconds in actions]
    )]  # fmt: skip
    found = speed(Setting("naive", 2), [Turn(frames[:2], 1.0), Turn(frames[2:], 5.0)], off_seconds=9.0)
    assert found == Speed("naive", 2, 0.4, 6.0, 2500.0, pytest.approx(30.0), 1.5, pytest.approx(0.9))
    assert table([found]).splitlines()[1].split() == [
        "naive", "2", "40.0%", "6.00", "2500.0", "ms", "30.0", "ms", "1.50x", "90.0%",
    ]  # fmt: skip


def test_a_clip_that_ends_before_the_first_key_frame_has_no_median_of_processed_frames():
    frames = [TrackedFrame(np.zeros((1, 1)), FrameDecision(t, "reused" if t else "prompted", 0, "", 1)) for t in (0, 1)]
    found = speed(Setting("naive", 4), [Turn(frames, 2.0)], off_seconds=3.0)
    assert found.processed_ms is None and found.skipped_ms == 1000.0
    assert table([found]).splitlines()[1].split() == [
        "naive", "4", "50.0%", "2.00", "1000.0", "ms", "1.50x", "75.0%",
    ]  # fmt: skip


def test_what_cannot_be_measured_is_refused(root, capsys):
    assert main(["--davis_root", str(root.root), "--sequence", "none"]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["--davis_root", str(root.root), "--sequence", "none", "--device", "gpu"]) == 2
    assert "error: --device must be cuda, mps or cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        skip_speedup.parse(["--davis_root", "x", "--sequence", "a", "--frames", "2"])

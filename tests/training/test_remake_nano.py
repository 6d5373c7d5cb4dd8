"""training/remake_nano.sh, with programs in place of git and of training that note what they are asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "training" / "remake_nano.sh"

TRAINS = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$NOTES"
while [ "$1" != --output ]; do shift; done
[ "$(basename "$2")" != "${FAILS:-}" ] || exit 3
mkdir -p "$2" && touch "$2/resume.pt" "$2/model.pt"
"""
SHOWS = """#!/usr/bin/env bash
echo "git $*" >>"$NOTES"
[ -z "${NO_HISTORY:-}" ] && echo weights
"""


class Bench:
    """A folder for the results, and what was asked for since the last look."""

    def __init__(self, folder: Path) -> None:
        self.out, self.notes, self.programs = folder / "out", folder / "notes", folder / "programs"
        self.programs.mkdir()
        for name, text in (("git", SHOWS), ("python", TRAINS), ("torchrun", TRAINS)):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def call(self, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        self.notes.write_text("")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "NOTES": str(self.notes), **environment}
        return subprocess.run([SCRIPT, *map(str, args)], capture_output=True, text=True, env=environment)

    @property
    def asked(self) -> list[list[str]]:
        return [line.split() for line in self.notes.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_part_goes_on_from_the_weights_of_the_one_before(bench):
    assert bench.call(bench.out, "seed=9").returncode == 0
    shown, *parts = bench.asked
    assert shown == ["git", "show", "66632cc:checkpoints/sam2.1_hiera_nano.pt"]
    assert (bench.out / "first_part.pt").read_text() == "weights\n"
    weights = bench.out / "first_part.pt"
    for words in parts:
        assert f"init_from={weights}" in words and "seed=9" in words and "--resume" not in words
        recipe = next(word for word in words if word.endswith(".yaml"))
        assert (PROJECT / recipe).is_file()
        weights = Path(words[words.index("--output") + 1]) / "model.pt"
    assert [words[0] for words in parts] == ["torchrun", "python", "torchrun", "torchrun"]
    assert [words[words.index("training.train") + 1] for words in parts] == [
        f"configs/training/{name}.yaml" for name in ("nano_cpu", "nano", "nano_last", "nano_sizes")
    ]
    assert sum("positional_heads=4" in words for words in parts) == 1


def test_after_a_failure_the_same_command_goes_on(bench):
    stopped = bench.call(bench.out, FAILS="fourth_part")
    assert stopped.returncode == 3 and len(bench.asked) == 4  # the weights and three parts
    assert bench.call(bench.out).returncode == 0
    assert ["--resume" in words for words in bench.asked] == [True, True, False, False]


def test_without_the_history_nothing_is_left_that_would_be_taken_for_weights(bench):
    failed = bench.call(bench.out, NO_HISTORY="1")
    assert failed.returncode == 1 and "needs a clone with the project's history" in failed.stderr
    assert not (bench.out / "first_part.pt").exists() and len(bench.asked) == 1


@pytest.mark.parametrize("option", ["--output", "-x"])
def test_an_unknown_option_is_named(bench, option):
    failed = bench.call(option, bench.out)
    assert failed.returncode == 1 and f"no option is called '{option}'" in failed.stderr and not bench.asked


def test_help_says_what_is_made_and_makes_nothing(bench):
    told = bench.call("--help")
    assert told.returncode == 0 and "FOLDER/fifth_part/model.pt" in told.stdout and not bench.asked

"""training/remake_nano.sh, with programs in place of git and of python that note what they are asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "training" / "remake_nano.sh"

TRAINS = """#!/usr/bin/env bash
printf '%s\\t' "$PWD" "$@" >>"$NOTES" && echo >>"$NOTES"
[ "$2" != training.mix ] || exec touch "${@: -1}"
while [ "$1" != --output ]; do shift; done
mkdir -p "$2" && touch "$2/resume.pt"
[ "$(basename "$2")" != "${FAILS:-}" ] || exit 3
touch "$2/model.pt"
"""
SHOWS = """#!/usr/bin/env bash
printf 'git\\t%s\\t%s\\n' "$@" >>"$NOTES"
[ -z "${NO_HISTORY:-}" ] && echo weights
"""


class Bench:
    """A folder with a space to call from, and what was asked for at the last call."""

    def __init__(self, folder: Path) -> None:
        self.here, self.notes, self.programs = folder / "called here", folder / "notes", folder / "programs"
        for made in (self.here, self.programs):
            made.mkdir()
        for name, text in (("git", SHOWS), ("python", TRAINS)):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def call(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.notes.write_text("")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "NOTES": str(self.notes), **environment}
        return subprocess.run([SCRIPT, *args], capture_output=True, text=True, env=environment, cwd=self.here)

    @property
    def asked(self) -> list[list[str]]:
        return [line.rstrip("\t").split("\t") for line in self.notes.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_part_goes_on_from_the_weights_of_the_one_before(bench):
    assert bench.call("made here", "stages=[{steps: 1}]").returncode == 0
    shown, *parts, mixed = bench.asked
    assert shown == ["git", "show", "66632cc:checkpoints/sam2.1_hiera_nano.pt"]
    out = bench.here / "made here"
    assert (out / "first_part.pt").read_text() == "weights\n"
    two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    wanted = (
        ("second_part", "nano_cpu", two, ["device=cpu", "positional_heads=4"]),
        ("third_part", "nano", [], ["device=cuda"]),
        ("fourth_part", "nano_last", two, ["device=cpu"]),
        ("fifth_part", "nano_sizes", two, ["device=cpu"]),
        ("sixth_part", "nano_regions", two, ["device=cpu"]),
        ("seventh_part", "nano_strings", two, ["device=cpu"]),
    )
    weights = out / "first_part.pt"
    for words, (name, recipe, launch, own) in zip(parts, wanted, strict=True):
        told = [f"configs/training/{recipe}.yaml", "--output", str(out / name), f"init_from={weights}", *own]
        assert words == [str(PROJECT), "-m", *launch, "training.train", *told, "stages=[{steps: 1}]"]
        assert (PROJECT / told[0]).is_file()
        weights = out / name / "model.pt"
    last = [str(out / name / "model.pt") for name in ("sixth_part", "seventh_part")]
    assert mixed == [str(PROJECT), "-m", "training.mix", *last, "--output", str(out / "model.pt")]


def test_after_a_failure_the_same_command_goes_on(bench):
    stopped = bench.call("out", FAILS="fourth_part")  # after it has saved its state
    assert stopped.returncode == 3 and len(bench.asked) == 4  # the weights and three parts
    assert bench.call("out").returncode == 0
    assert ["--resume" in words for words in bench.asked] == [True, True, True, False, False, False, False]


def test_without_the_history_nothing_is_left_that_would_be_taken_for_weights(bench):
    failed = bench.call("out", NO_HISTORY="1")
    assert failed.returncode == 1 and "from the history: needs git and a full clone" in failed.stderr
    assert not (bench.here / "out" / "first_part.pt").exists() and len(bench.asked) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "out"], "no option is called '--output'"),
        (["out", "seed", "9"], "takes one FOLDER, got 'out' and 'seed'"),
        (["out", "runs/lr=1"], "takes one FOLDER, got 'out' and 'runs/lr=1'"),
    ],
)
def test_what_is_not_understood_is_named(bench, args, message):
    failed = bench.call(*args)
    assert failed.returncode == 1 and message in failed.stderr
    assert not bench.asked and not list(bench.here.iterdir())


def test_a_folder_may_have_an_equals_sign_in_its_name_and_cdpath_leads_nowhere(bench, tmp_path):
    (tmp_path / "elsewhere" / "runs" / "lr=1").mkdir(parents=True)
    assert bench.call("runs/lr=1", "seed=9", CDPATH=str(tmp_path / "elsewhere")).returncode == 0
    assert (bench.here / "runs" / "lr=1" / "model.pt").exists()
    assert all("seed=9" in words for words in bench.asked[1:-1])


def test_without_a_folder_it_is_the_one_that_help_names(bench):
    told = bench.call("--help")
    assert told.returncode == 0 and "FOLDER/model.pt" in told.stdout and not bench.asked
    assert "(default: outputs/remade)" in told.stdout
    assert bench.call().returncode == 0 and (bench.here / "outputs" / "remade" / "model.pt").exists()

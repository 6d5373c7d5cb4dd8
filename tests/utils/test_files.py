"""Files that appear at once or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2.utils import files
from sam2.utils.files import locked, write_text

try:
    import fcntl
except ImportError:
    fcntl = None

needs_locks = pytest.mark.skipif(fcntl is None, reason="Windows has no locks of this kind")


def test_a_text_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "new" / "a.json", "old")

    def fail(*_):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_text(tmp_path / "new" / "a.json", "new")
    assert (tmp_path / "new" / "a.json").read_text() == "old" and os.listdir(tmp_path / "new") == ["a.json"]


@needs_locks
def test_a_lock_keeps_others_out_until_its_block_ends_and_leaves_no_file(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "new" / ".lock"):
            with pytest.raises(BlockingIOError, match="new: another process is at work here"):
                with locked(tmp_path / "new" / ".lock"):
                    pass
            assert os.listdir(tmp_path / "new") == [".lock"]
        assert os.listdir(tmp_path / "new") == []


@needs_locks
def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    code = f"""
import pathlib, sam2.utils.files
with sam2.utils.files.locked(pathlib.Path({str(path)!r})):
    print("inside", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"inside\n"
        with pytest.raises(BlockingIOError), locked(path):
            pass
        process.kill()
    assert path.exists()
    with locked(path):
        pass


@needs_locks
def test_a_lock_on_a_file_that_was_removed_meanwhile_locks_nothing(tmp_path, monkeypatch):
    flock = fcntl.flock

    def late(file, how):  # who was inside removes the file and leaves, after it was opened here
        (tmp_path / ".lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BlockingIOError), locked(tmp_path / ".lock"):
        pass


def test_without_locks_nobody_is_kept_out_and_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock"):
        assert os.listdir(tmp_path) == []


@needs_locks
def test_where_the_file_system_knows_no_locks_work_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        pass

"""Files that appear at once or not at all, and locks between processes."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of `path` when the block ends without an error.

    Missing folders are made. A failure leaves the file of before, and a killed process a `.*.part*` beside it. The name
    ends as `path` does, for writers that go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_utf8(path: Path) -> bool:
    """Whether a file's name is text. On Linux it may be any bytes, and OpenCV crashes on those."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, at once or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The object in a JSON file; None where there is no file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to start anew") from error
    return content if isinstance(content, dict) else {}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the block, by a lock on a file that is there as long as the block runs.

    A killed process leaves the file, which then locks nothing. Nobody is kept out on file systems that know no locks,
    and on Windows, where there is no file either.

    Raises:
        BlockingIOError: another process is in such a block.
    """
    if fcntl is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        # Who was in the block may have removed the file since it was opened here: its lock would keep nobody out.
        if not (_lock(file) and _is_at(file, path)):
            raise BlockingIOError(f"{path.parent}: another process is at work here")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file if it can be; False where another process has."""
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

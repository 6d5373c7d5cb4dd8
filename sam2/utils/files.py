"""Files that appear at once or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, at once or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")

"""Files that appear at once or not at all."""

import os

import pytest

from sam2.utils.files import write_text


def test_a_text_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "new" / "a.json", "old")

    def fail(*_):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_text(tmp_path / "new" / "a.json", "new")
    assert (tmp_path / "new" / "a.json").read_text() == "old" and os.listdir(tmp_path / "new") == ["a.json"]

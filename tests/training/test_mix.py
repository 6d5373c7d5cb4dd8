"""Weights between those before and those after fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.checkpoints import save_weights
from training.mix import main, mix


def write(path: Path, value: float, *, half: bool = False, **more: torch.Tensor) -> Path:
    save_weights(path, {"a": torch.full((2, 3), value), "count": torch.tensor(3), **more}, half=half)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_a_share_of_the_way_from_one_checkpoint_to_the_other_is_written_in_its_precision(tmp_path, half):
    before, after = write(tmp_path / "before.pt", 1.0), write(tmp_path / "after.pt", 3.0, half=half)
    main([str(before), str(after), "--share", "0.25", "--output", str(tmp_path / "mixed.pt")])
    mixed = torch.load(tmp_path / "mixed.pt", weights_only=True)["model"]
    expected = torch.full((2, 3), 1.5, dtype=torch.float16 if half else torch.float32)
    torch.testing.assert_close(mixed["a"], expected)
    assert mixed["count"].dtype == torch.int64 and mixed["count"] == 3
    main([str(before), str(after), "--output", str(tmp_path / "mixed.pt")])
    assert torch.load(tmp_path / "mixed.pt", weights_only=True)["model"]["a"][0, 0] == 2.0  # halfway by default


def test_what_is_not_of_one_network_or_not_there_is_named(tmp_path):
    before = write(tmp_path / "before.pt", 1.0)
    more = write(tmp_path / "more.pt", 3.0, b=torch.zeros(5))
    out = tmp_path / "mixed.pt"
    with pytest.raises(SystemExit, match=r"not of one network: b is nothing in the first and \(5,\) in the second"):
        main([str(before), str(more), "--output", str(out)])
    with pytest.raises(SystemExit, match="none.pt"):
        main([str(before), str(tmp_path / "none.pt"), "--output", str(out)])
    with pytest.raises(SystemExit, match="share must be from 0 to 1, got 1.5"):
        main([str(before), str(before), "--share", "1.5", "--output", str(out)])
    with pytest.raises(ValueError, match=r"a is \(2,\) in the first and \(1, 2\) in the second"):
        mix({"a": torch.zeros(2)}, {"a": torch.zeros(1, 2)}, 0.5)
    assert not out.exists()

"""What a run starts from: a checkpoint, and heads that attend by position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from training.initialisation import MEMORY_PLACES, attend_by_position, nearest_places, start_from


def attention_by_place(network: SAM2Base, pixel: float) -> torch.Tensor:
    """Where on the 4 x 4 grid the first layer's last head looks for a token at (pixel, pixel), features left out."""
    attention: Any = network.sam_mask_decoder.transformer.layers[0].cross_attn_token_to_image  # type: ignore[index]
    encoder = network.sam_prompt_encoder
    places = encoder.get_dense_pe().flatten(2).transpose(1, 2)  # (1, 16, C)
    point = encoder.pe_layer.forward_with_coords(torch.tensor([[[pixel, pixel]]]), (64, 64))
    projected = (attention.q_proj(point), attention.k_proj(places))
    q, k = (attention._separate_heads(x, attention.num_heads) for x in projected)
    return (q @ k.transpose(-1, -2))[0, -1, 0].view(4, 4)


@torch.no_grad()
@pytest.mark.parametrize(("pixel", "cell"), [(8.0, 0), (40.0, 2), (56.0, 3)])
def test_a_positional_head_looks_at_the_prompts_own_place(network: SAM2Base, pixel: float, cell: int):
    attend_by_position(network, 4)
    assert attention_by_place(network, pixel).argmax().item() == 5 * cell


def test_only_the_heads_asked_for_change(network: SAM2Base):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attend_by_position(network, 0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    attend_by_position(network, 2)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rsplit(".", 2)[1] for name in changed} == {"q_proj", "k_proj"} and len(changed) == 20
    for name in changed:
        assert torch.equal(network.state_dict()[name][:48], before[name][:48])  # six of eight heads of width 8


def test_more_heads_than_there_are_is_refused(network: SAM2Base):
    with pytest.raises(ValueError, match="positional_heads must be from 0 to 8, got 9"):
        attend_by_position(network, 9)


def test_a_checkpoint_that_remembers_more_frames_gives_its_nearest_places(network: SAM2Base, tmp_path: Path):
    weights = network.state_dict()
    weights[MEMORY_PLACES] = torch.arange(7.0)[:, None, None, None].expand(7, 1, 1, 64).clone()
    torch.save({"model": weights}, tmp_path / "more.pt")
    start_from(network, tmp_path / "more.pt")
    assert network.maskmem_tpos_enc[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 6]  # the last is that of prompted frames

    wider = build_sam2("nano", device="cpu", hydra_overrides_extra=["++model.num_maskmem=8"])
    with pytest.raises(RuntimeError, match=r"maskmem_tpos_enc \(model \(8, 1, 1, 64\), checkpoint \(7, 1, 1, 64\)\)"):
        start_from(wider, tmp_path / "more.pt")
    assert nearest_places(weights[MEMORY_PLACES], 1)[:, 0, 0, 0].tolist() == [6]

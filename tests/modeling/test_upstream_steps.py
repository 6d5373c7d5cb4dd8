"""The network's insides under upstream's names and arguments, as loops and training code elsewhere call them."""

from typing import Any

import pytest
import torch

from sam2.build_sam import build_sam2

SIDE = 96
CLICK = {"point_coords": torch.tensor([[[40.0, 50.0]]]), "point_labels": torch.tensor([[1]], dtype=torch.int32)}


@pytest.fixture(scope="module")
def model():
    built = build_sam2("nano", device="cpu", hydra_overrides_extra=[f"++model.image_size={SIDE}"])
    built.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 10  # the object is always there
    return built


@pytest.fixture(scope="module")
def frame(model):
    """Tokens, positions and sizes of an image, and the decoder's finer maps."""
    image = torch.full((1, 3, SIDE, SIDE), -2.0)
    image[..., 20:60, 30:70] = 2.0
    with torch.no_grad():
        _, tokens, positions, sizes = model._prepare_backbone_features(model.forward_image(image))
    finer = [x.permute(1, 2, 0).view(1, -1, *size) for x, size in zip(tokens[:-1], sizes[:-1], strict=True)]
    return tokens, positions, sizes, finer


def outputs() -> dict[str, dict[int, Any]]:
    return {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}


@torch.no_grad()
def test_heads_unpack_in_upstreams_order(model, frame):
    tokens, positions, sizes, finer = frame
    top = model._prepare_memory_conditioned_features(0, True, tokens[-1:], positions[-1:], sizes[-1:], outputs(), 5)
    several = model._use_multimask(True, CLICK)
    assert several is True and model._use_multimask(is_init_cond_frame=True, point_inputs=None) is True
    low_multi, high_multi, ious, low, high, pointer, score = model._forward_sam_heads(
        backbone_features=top, point_inputs=CLICK, mask_inputs=None, high_res_features=finer, multimask_output=several
    )
    assert low_multi.shape == (1, 3, SIDE // 4, SIDE // 4) and high_multi.shape == (1, 3, SIDE, SIDE)
    assert ious.shape == (1, 3) and pointer.shape == (1, model.hidden_dim) and score.shape == (1, 1)
    best = int(ious.argmax())
    assert torch.equal(low, low_multi[:, best : best + 1]) and torch.equal(high, high_multi[:, best : best + 1])
    low_one, high_one, _, low, high, *_ = model._forward_sam_heads(top, CLICK, None, finer, False)
    assert torch.equal(low_one, low) and torch.equal(high_one, high) and score.item() > 0


@torch.no_grad()
def test_a_mask_answers_itself(model, frame):
    tokens, _, sizes, finer = frame
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 20:60, 30:70] = 1
    top = tokens[-1].permute(1, 2, 0).view(1, -1, *sizes[-1])
    low_multi, high_multi, ious, low, high, *_ = model._use_mask_as_output(top, finer, mask)
    assert torch.equal(high > 0, mask > 0) and high_multi is high and low_multi is low
    assert ious.tolist() == [[1.0]]


@torch.no_grad()
def test_the_steps_together_are_a_tracked_frame(model, frame):
    tokens, positions, sizes, _ = frame
    earlier = outputs()
    earlier["cond_frame_outputs"][0] = model.track_step(0, True, tokens, positions, sizes, CLICK, None, earlier, 5)
    expected = model.track_step(1, False, tokens, positions, sizes, None, None, earlier, 5)
    arguments = (1, False, tokens, positions, sizes, None, None, earlier, 5)
    output, heads, finer, top = model._track_step(*arguments, track_in_reverse=False, prev_sam_mask_logits=None)
    assert output == {"point_inputs": None, "mask_inputs": None} and len(finer) == 2
    assert torch.equal(heads[3], expected["pred_masks"]) and torch.equal(heads[5], expected["obj_ptr"])
    assert torch.equal(model._forward_sam_heads(top, None, None, finer, True)[3], heads[3])
    model._encode_memory_in_output(tokens, sizes, None, True, heads[4], heads[6], output)
    assert torch.equal(output["maskmem_features"], expected["maskmem_features"])
    assert torch.equal(output["maskmem_pos_enc"][-1], expected["maskmem_pos_enc"][-1])
    model._encode_memory_in_output(tokens, sizes, None, False, heads[4], heads[6], output)
    assert output["maskmem_features"] is None and output["maskmem_pos_enc"] is None


@torch.no_grad()
@pytest.mark.parametrize("nothing", [{}, None])
def test_a_first_frame_needs_no_earlier_outputs(model, frame, nothing):
    """As code that trains on pictures calls it."""
    tokens, positions, sizes, _ = frame
    expected = model.track_step(0, True, tokens, positions, sizes, CLICK, None, outputs(), 1)
    found = model.track_step(0, True, tokens, positions, sizes, CLICK, None, nothing, 1, run_mem_encoder=False)
    assert torch.equal(found["pred_masks"], expected["pred_masks"])
    with pytest.raises(RuntimeError, match="frame 1 has no prompted frame to track from"):
        model.track_step(1, False, tokens, positions, sizes, None, None, nothing, 2)


def test_every_pixel_goes_to_one_object_under_upstreams_name(model):
    masks = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    assert model._apply_non_overlapping_constraints(masks).flatten().tolist() == [-10.0, 5.0]

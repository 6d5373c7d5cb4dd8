"""The network as a whole: sizes, dtypes, and upstream's own entry points."""

import pytest
import torch

from sam2.build_sam import build_sam2
from sam2.modeling.memory_bank import MemoryBank
from sam2.modeling.outputs import FrameOutput, FrameRequest
from sam2.modeling.sam2_base import SAM2Base, keep_highest_object


def build(**options):
    overrides = [f"++model.{key}={value}" for key, value in options.items()]
    return build_sam2("nano", device="cpu", hydra_overrides_extra=overrides)


@pytest.fixture(scope="module")
def model():
    return build(image_size=96)


def step(model, frame_idx, output_dict, image, **prompt):
    features = model._prepare_backbone_features(model.forward_image(image))
    _, tokens, positions, sizes = features
    arguments = {"point_inputs": None, "mask_inputs": None, **prompt}
    return model.track_step(
        frame_idx, not output_dict["cond_frame_outputs"], tokens, positions, sizes, **arguments,
        output_dict=output_dict, num_frames=5,
    )  # fmt: skip


@pytest.mark.parametrize("image_size", [96, 160])
@torch.inference_mode()
def test_any_input_size_divisible_by_32_works(image_size):
    model = build(image_size=image_size)
    encoded = model.forward_image(torch.zeros(1, 3, image_size, image_size))
    assert [m.shape[-1] for m in encoded["backbone_fpn"]] == [image_size // stride for stride in (4, 8, 16)]
    mask = torch.zeros(1, 1, image_size, image_size)
    mask[..., 20:60, 30:70] = 1
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    image = torch.zeros(1, 3, image_size, image_size)
    outputs["cond_frame_outputs"][0] = step(model, 0, outputs, image, mask_inputs=mask)
    tracked = step(model, 1, outputs, image)
    assert tracked.pred_masks.shape == (1, 1, image_size // 4, image_size // 4)


def test_an_input_size_that_32_does_not_divide_is_refused():
    with pytest.raises(Exception, match="image_size must be divisible by 32, got 100"):
        build(image_size=100)


def test_the_heads_may_be_built_by_a_subclass(monkeypatch):
    plain = SAM2Base._build_sam_heads

    def build_heads(self):
        plain(self)
        self.extra_head = torch.nn.Linear(self.sam_image_embedding_size, self.image_size)

    monkeypatch.setattr(SAM2Base, "_build_sam_heads", build_heads)
    assert build(image_size=96).extra_head.weight.shape == (96, 6)


def test_a_network_fitted_to_another_size_is_the_one_built_for_it():
    built, fitted = build(image_size=96), build(image_size=64)
    fitted.load_state_dict(built.state_dict())
    fitted.fit_image_size(96)
    image, request = torch.randn(1, 3, 96, 96), FrameRequest(0, 1, reads_memory=False)
    with torch.inference_mode():
        a, b = (net.segment(net.encode_image(image), MemoryBank({}, {}), request) for net in (built, fitted))
    assert a.high_res_masks.shape[-1] == 96 and torch.equal(a.high_res_masks, b.high_res_masks)
    with pytest.raises(ValueError, match="divisible by 32, got 100"):
        fitted.fit_image_size(100)


@torch.inference_mode()
def test_track_step_takes_and_gives_what_upstreams_does(model):
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    points = {"point_coords": torch.tensor([[[40.0, 50.0]]]), "point_labels": torch.tensor([[1]], dtype=torch.int32)}
    first = step(model, 0, outputs, torch.ones(1, 3, 96, 96), point_inputs=points)
    assert first["pred_masks"].shape == (1, 1, 24, 24)
    assert first["pred_masks_high_res"].shape == (1, 1, 96, 96)
    assert first["maskmem_features"].shape == (1, 64, 6, 6)
    with pytest.raises(KeyError):
        first["no such field"]
    outputs["cond_frame_outputs"][0] = first
    second = step(model, 1, outputs, torch.ones(1, 3, 96, 96), run_mem_encoder=False)
    assert second.maskmem_features is None


@torch.inference_mode()
def test_objects_with_equal_histories_can_be_tracked_in_one_batch(model):
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 96, 96)
    masks[0, ..., 10:40, 10:40] = masks[1, ..., 50:90, 30:80] = 1

    def track(mask):
        batch = image.expand(len(mask), -1, -1, -1)
        outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        outputs["cond_frame_outputs"][0] = step(model, 0, outputs, batch, mask_inputs=mask)
        return step(model, 1, outputs, batch).pred_masks

    together = track(masks)
    alone = torch.cat([track(masks[:1]), track(masks[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_memory_off_means_no_memory_is_written_or_read():
    model = build(image_size=96, num_maskmem=0)
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    points = {"point_coords": torch.tensor([[[40.0, 50.0]]]), "point_labels": torch.tensor([[1]], dtype=torch.int32)}
    outputs["cond_frame_outputs"][0] = step(model, 0, outputs, torch.ones(1, 3, 96, 96), point_inputs=points)
    assert outputs["cond_frame_outputs"][0].maskmem_features is None
    assert isinstance(step(model, 1, outputs, torch.ones(1, 3, 96, 96)), FrameOutput)


def test_the_network_has_no_single_forward_pass(model):
    with pytest.raises(NotImplementedError, match="SAM2VideoPredictor"):
        model(torch.zeros(1, 3, 96, 96))


def test_every_pixel_is_left_to_its_highest_object():
    masks = torch.tensor([[3.0, -2.0, 5.0], [4.0, -1.0, -20.0]]).view(2, 1, 1, 3)
    separate = keep_highest_object(masks)
    assert separate.flatten(1).tolist() == [[-10.0, -10.0, 5.0], [4.0, -1.0, -20.0]]
    assert ((separate > 0).sum(0) <= 1).all()


@torch.inference_mode()
def test_the_models_dtype_wins_over_the_callers_autocast(model):
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = model.forward_image(image)["vision_features"]
    reduced = build_sam2("nano", device="cpu", hydra_overrides_extra=["++model.image_size=96"], dtype="bfloat16")
    full = build_sam2("nano", device="cpu", hydra_overrides_extra=["++model.image_size=96"], dtype="float32")
    for other in (reduced, full):
        other.load_state_dict(model.state_dict())
    with reduced.autocast():
        assert reduced.forward_image(image)["backbone_fpn"][0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), full.autocast():
        torch.testing.assert_close(full.forward_image(image)["vision_features"], plain)


def test_rotary_tables_survive_a_change_of_dtype_and_stay_out_of_the_state_dict():
    from sam2.modeling.sam.transformer import RoPEAttention

    attention = RoPEAttention(embedding_dim=64, num_heads=1, feat_sizes=(4, 4)).to(torch.bfloat16)
    assert not any("freqs" in name for name in attention.state_dict())
    x = torch.randn(1, 16, 64, dtype=torch.bfloat16)
    assert torch.isfinite(attention(x, x, x)).all()


def test_a_table_made_while_tracking_can_be_trained_with_later():
    from sam2.modeling.sam.transformer import RoPEAttention

    attention = RoPEAttention(embedding_dim=64, num_heads=1, feat_sizes=(4, 4))
    x = torch.randn(1, 36, 64)
    with torch.inference_mode():
        attention(x, x, x)  # another grid than the one the table was made for
    attention(x, x, x).sum().backward()
    assert attention.q_proj.weight.grad is not None


@torch.inference_mode()
def test_memory_may_be_kept_in_plain_dicts_of_upstreams_keys(model):
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    points = {"point_coords": torch.tensor([[[40.0, 50.0]]]), "point_labels": torch.tensor([[1]], dtype=torch.int32)}
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    outputs["cond_frame_outputs"][0] = step(model, 0, outputs, image, point_inputs=points)
    outputs["non_cond_frame_outputs"][1] = step(model, 1, outputs, image)
    expected = step(model, 2, outputs, image)
    kept = ("maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr", "object_score_logits")
    own = {
        name: {t: {key: output[key] for key in kept} for t, output in store.items()} for name, store in outputs.items()
    }
    assert torch.equal(step(model, 2, own, image).pred_masks, expected.pred_masks)

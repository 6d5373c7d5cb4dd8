"""The network over clips: what each object sees, and what is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sam2.modeling.sam2_base import SAM2Base
from training.attention import fast_attention
from training.clips import ClipBatch
from training.losses import answer_losses
from training.model import ClipModel
from training.prompts import Plan, group_prompts
from training.recipe import LossWeights, PromptMix
from training.recomputation import recompute_trunk

MASKS_ONLY = PromptMix(mask=1, box=0, click=0, correction=0, first_correction=0)
EVERYTHING = PromptMix(mask=0.4, box=0.3, click=0.3, correction=1, first_correction=1)


@pytest.fixture
def model(network: SAM2Base) -> ClipModel:
    return ClipModel(network, LossWeights())


def masks_of(model: ClipModel, batch: ClipBatch, mix: PromptMix = MASKS_ONLY) -> torch.Tensor:
    with torch.no_grad():
        masks = model(batch, mix, keep_masks=True).masks
    assert masks is not None
    return masks


def test_a_given_mask_is_the_answer_of_its_frame(model: ClipModel, batch: ClipBatch):
    assert torch.equal(masks_of(model, batch)[:, 0], batch.masks[:, 0])


def test_an_object_is_tracked_through_its_own_clip_alone(model: ClipModel, batch: ClipBatch):
    together = model(batch, MASKS_ONLY).batch.losses
    first = ClipBatch(batch.frames[:1], batch.masks[:1], batch.clip_of[:1], batch.near[:1])
    second = ClipBatch(batch.frames[1:], batch.masks[1:], batch.clip_of[1:] - 1, batch.near[1:])
    parts = [model(part, MASKS_ONLY).batch.losses for part in (first, second)]
    expected = (parts[0].total + 2 * parts[1].total) / 3  # means over one and two objects
    assert torch.allclose(together.total, expected, rtol=1e-4)


def test_groups_of_prompts_come_back_in_the_order_of_their_objects(model: ClipModel, batch: ClipBatch):
    shuffled = batch._replace(masks=batch.masks[[2, 0, 1]], clip_of=batch.clip_of[[2, 0, 1]])
    for seed in range(3):
        torch.manual_seed(seed)
        mix = PromptMix(mask=0.5, box=0.5, click=0, correction=0, first_correction=0)
        masks = masks_of(model, shuffled, mix)
        torch.manual_seed(seed)
        groups = group_prompts(shuffled.masks[:, 0, None], mix, shuffled.near_objects)
        assert [group.kind for group in groups] == ["mask", "box"]
        for row in groups[0].rows:
            assert torch.equal(masks[row, 0], shuffled.masks[row, 0])


def test_all_parts_of_the_network_learn(untrained: Callable[[int], SAM2Base], batch: ClipBatch):
    silent: set[str] | None = None
    for seed in range(8):  # networks that have learned nothing: of three masks, each is the best of some
        network = untrained(seed)
        ClipModel(network, LossWeights())(batch, EVERYTHING).batch.losses.total.backward()
        found = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()}
        silent = found if silent is None else silent & found
    assert silent is not None
    # What marks an absent object has nothing to do here, and memory is never empty.
    assert silent <= {
        "no_obj_ptr",
        "no_obj_embed_spatial",
        "no_mem_pos_enc",
        "sam_prompt_encoder.point_embeddings.0.weight",
    } | {name for name in silent if name.startswith("maskmem_tpos_enc")}


def test_every_pass_of_the_decoder_is_supervised(model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: calls.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(model.network, "decode_masks", counted("decode", model.network.decode_masks))
    monkeypatch.setattr("training.losses.answer_losses", counted("supervise", answer_losses))
    torch.manual_seed(1)
    model(batch, PromptMix(mask=0, box=0, click=1, correction=1, first_correction=1, practice=1))
    assert calls.count("decode") == calls.count("supervise") >= (3 + 2) + 2 * 2


def test_further_prompted_frames_are_remembered_before_anything_is_tracked(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, list[int], list[int]]] = []
    track = ClipModel._tracked_frame

    def watched(self: ClipModel, features: Any, target: Any, bank: Any, request: Any, plan: Any) -> Any:
        seen.append((request.frame_idx, sorted(bank.prompted), sorted(bank.propagated)))
        return track(self, features, target, bank, request, plan)

    monkeypatch.setattr(ClipModel, "_tracked_frame", watched)
    plan = Plan(prompted=(0, 2), first_clicks=0, corrected=(), clicks=1, practice_frame=None, practice_clicks=1)
    monkeypatch.setattr("training.model.draw_plan", lambda mix, num_frames, lead: plan)
    masks = masks_of(model, batch, MASKS_ONLY)
    assert seen == [(1, [0, 2], [])]
    assert torch.equal(masks[:, 2], batch.masks[:, 2]), "a given mask is the answer"


def test_a_lead_is_tracked_alike_and_the_frames_after_it_alone_are_trained(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    clip = batch._replace(frames=batch.frames[:, [0, 1, 2, 1, 2]], masks=batch.masks[:, [0, 1, 2, 1, 2]])
    losses: list[float] = []

    def watched(answer: Any, target: torch.Tensor, weights: LossWeights) -> Any:
        answered = answer_losses(answer, target, weights)
        losses.append(answered.losses.total.item())
        return answered

    monkeypatch.setattr("training.losses.answer_losses", watched)
    led = model(clip, MASKS_ONLY, lead=2, keep_masks=True)
    assert led.masks is not None and torch.equal(led.masks, masks_of(model, clip))
    after, whole = losses[:2], losses[2:]
    assert len(whole) == 4 and after == pytest.approx(whole[2:], rel=1e-4)
    assert led.batch.losses.total.item() == pytest.approx(sum(after) / (3 * 3), rel=1e-4), "3 objects, 3 frames"


def test_a_lead_keeps_nothing_to_go_back_through(model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch):
    recorded: list[bool] = []
    encode, remember = model.network.encode_image, ClipModel._remember

    def encoding(images: torch.Tensor) -> Any:
        recorded.append(torch.is_grad_enabled())
        return encode(images)

    def remembering(*args: Any) -> Any:
        recorded.append(torch.is_grad_enabled())
        return remember(*args)

    monkeypatch.setattr(model.network, "encode_image", encoding)
    monkeypatch.setattr(ClipModel, "_remember", remembering)
    model(batch, MASKS_ONLY, lead=1)
    assert recorded == [False, True, True, False], "the lead's encoding, that of the others, and two memories"


def test_what_a_lead_has_used_learns_all_the_same_in_bfloat16(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    cleared: list[None] = []
    clear = torch.clear_autocast_cache
    monkeypatch.setattr("torch.clear_autocast_cache", lambda: cleared.append(clear()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch, MASKS_ONLY, lead=1).batch.losses.total
        assert len(cleared) == 2, "after encoding and tracking; without it some of this learns nothing with older torch"
    loss.backward()
    parts = ("memory_attention.layers.0.linear1.weight", "memory_encoder.out_proj.weight", "image_encoder.trunk.patch")
    for part in parts:
        learns = [
            p.grad is not None and p.grad.any() for n, p in model.network.named_parameters() if n.startswith(part)
        ]
        assert learns and all(learns), part


def test_without_gradients_long_clips_are_encoded_a_part_at_a_time(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    whole = masks_of(model, batch)
    counts: list[int] = []
    encode = model.network.encode_image
    monkeypatch.setattr(model.network, "encode_image", lambda images: counts.append(len(images)) or encode(images))
    monkeypatch.setattr("training.model.FRAMES_AT_ONCE", 4)
    assert torch.equal(masks_of(model, batch), whole)
    model(batch, MASKS_ONLY)
    assert counts == [4, 2, 6]


def test_memory_is_written_for_frames_that_are_read_only(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    written: list[int] = []
    remember = ClipModel._remember
    monkeypatch.setattr(ClipModel, "_remember", lambda self, *args: written.append(1) or remember(self, *args))
    masks_of(model, batch)
    assert len(written) == 2
    single = batch._replace(frames=batch.frames[:, :1], masks=batch.masks[:, :1])
    masks_of(model, single, PromptMix(mask=0, box=0, click=1))
    assert len(written) == 2


def test_a_trunk_that_is_computed_again_learns_the_same_and_keeps_less(model: ClipModel, batch: ClipBatch):
    def gradients() -> tuple[dict[str, torch.Tensor], int]:
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        torch.manual_seed(0)
        with fast_attention(torch.device("cpu")), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = model(batch, MASKS_ONLY).batch.losses.total
        before = kept
        loss.backward()
        found = {name: p.grad for name, p in model.network.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found, before

    plain, most = gradients()
    recompute_trunk(model.network)
    again, least = gradients()
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)
    assert least < 0.75 * most
    copied = copy.deepcopy(model)
    with torch.no_grad():
        dict(copied.network.named_parameters())["image_encoder.trunk.blocks.0.norm1.weight"].zero_()
    assert not torch.equal(masks_of(copied, batch, MASKS_ONLY), masks_of(model, batch, MASKS_ONLY))


def test_many_objects_are_practised_on_in_multiples(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.model.PRACTICE_UNIT", 2)
    counts = []
    segment = SAM2Base.segment

    def seen(self: SAM2Base, features: Any, bank: Any, request: Any) -> Any:
        counts.append(None if request.points is None else len(request.points.point_coords))
        return segment(self, features, bank, request)

    monkeypatch.setattr(SAM2Base, "segment", seen)
    model(batch, replace(MASKS_ONLY, practice=1.0))
    assert [count for count in counts if count is not None] == [2, 2], "a box and a click each, for two of three"


def test_what_is_seen_in_a_search_region_is_given_by_its_mask_and_not_practised_on(
    model: ClipModel, batch: ClipBatch, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    segment = SAM2Base.segment

    def note(self: SAM2Base, features: Any, bank: Any, request: Any) -> Any:
        seen.append((len(features.maps[0]), request.points is not None))
        return segment(self, features, bank, request)

    monkeypatch.setattr(SAM2Base, "segment", note)
    clicks = PromptMix(mask=0, box=0, click=1, correction=0, first_correction=0, practice=1.0)
    masks = masks_of(model, batch._replace(near=torch.tensor([False, True])), clicks)
    assert sorted(seen) == [(1, True)] * 3 + [(2, False)], "one object is clicked and practised on, two are given"
    assert torch.equal(masks[1:, 0], batch.masks[1:, 0])
    seen.clear()
    model(batch._replace(near=torch.tensor([True, True])), clicks)
    assert seen == [(3, False)]


def test_practice_leaves_tracking_as_it_is(model: ClipModel, batch: ClipBatch):
    plain = masks_of(model, batch, MASKS_ONLY)
    assert torch.equal(plain, masks_of(model, batch, replace(MASKS_ONLY, practice=1.0)))


def test_the_loss_falls_when_one_batch_is_repeated(model: ClipModel, batch: ClipBatch):
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        loss = model(batch, PromptMix(mask=0.5, box=0.5, click=0, correction=0)).batch.losses.total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_attention_written_out_equals_the_fused_kernel():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    fused = F.scaled_dot_product_attention(q, k, v)
    with fast_attention(torch.device("cpu")):
        plain = F.scaled_dot_product_attention(q, k, v)
        masked = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(5, 7))
    assert torch.allclose(fused, plain, atol=1e-6) and torch.allclose(fused, masked, atol=1e-6)


def test_attention_on_a_gpu_takes_any_size_as_it_comes():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with fast_attention(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()

"""Video sessions: prompts, corrections, directions, options, and input that is refused without harm.

The recorded answers of the original are in test_golden.py; here the small embedded model runs at 128 pixels.
"""

import numpy as np
import pytest
import torch
from sessions import track
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam2.build_sam import build_sam2_video_predictor, packaged_file
from sam2.modeling.outputs import FrameOutput
from sam2.utils.drawn_clips import draw_clip
from sam2.video_state import ObjectTrack

HEIGHT, WIDTH, LENGTH = 96, 128, 6
NANO = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")


LARGER = ["++model.image_size=256"]
"""For tests of how good masks are: the model has seen no smaller pictures."""


def build(*overrides: str, **options):
    """The embedded model, small and without skipping, so that every frame is processed."""
    small = ["++model.image_size=128", "++model.skip_mad_threshold=0"]
    return build_sam2_video_predictor("nano", NANO, device="cpu", hydra_overrides_extra=[*small, *overrides], **options)


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=8)


@pytest.fixture(scope="module")
def predictor():
    return build()


@pytest.fixture
def state(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    yield state
    state.frames.close()


def iou(logits, mask) -> float:
    found = logits.numpy() > 0
    return (found & mask).sum() / (found | mask).sum()


# Tracking


def test_a_mask_prompt_is_tracked_through_the_clip(clip):
    predictor = build(*LARGER)
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 5, clip.labels[0] == 1)
    masks = track(predictor, state)
    assert list(masks) == list(range(LENGTH))
    assert all(iou(masks[t][0, 0], clip.labels[t] == 1) > 0.7 for t in masks)


def test_answers_hold_all_objects_at_video_size_in_the_order_they_were_added(predictor, state, clip):
    predictor.add_new_mask(state, 0, 9, clip.labels[0] == 1)
    frame_idx, obj_ids, logits = predictor.add_new_points_or_box(state, 0, 2, points=[[30, 40]], labels=[1])
    assert (frame_idx, obj_ids) == (0, [9, 2])
    assert logits.shape == (2, 1, HEIGHT, WIDTH)
    assert iou(logits[0, 0], clip.labels[0] == 1) > 0.9


def test_objects_are_tracked_as_if_each_were_alone(predictor, clip):
    def session(*obj_ids):
        state = predictor.init_state(list(clip.frames))
        for obj_id in obj_ids:
            predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
        return track(predictor, state)

    together, alone = session(1, 2), session(2)
    assert all(torch.equal(together[t][1], alone[t][0]) for t in alone)


def test_a_frame_no_object_was_seen_on_shows_none(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    _, _, logits = predictor.add_new_mask(state, 3, 2, clip.labels[3] == 2)
    assert (logits[0] == -1024).all() and (logits[1] > 0).any()


def test_backward_tracking_goes_to_the_first_frame(predictor, state, clip):
    predictor.add_new_mask(state, 4, 1, clip.labels[4] == 1)
    masks = track(predictor, state, start_frame_idx=4, reverse=True)
    assert list(masks) == [4, 3, 2, 1, 0]
    assert iou(masks[0][0, 0], clip.labels[0] == 1) > 0.7
    assert track(predictor, state, start_frame_idx=0, reverse=True) == {}


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"start_frame_idx": 3}, [3, 4, 5]),
        ({"max_frame_num_to_track": 2}, [1, 2, 3]),
        ({"start_frame_idx": 3, "max_frame_num_to_track": 1, "reverse": True}, [3, 2]),
    ],
)
def test_propagation_starts_and_ends_where_it_is_told_to(predictor, state, clip, options, frames):
    predictor.add_new_mask(state, 1, 1, clip.labels[1] == 1)
    assert list(track(predictor, state, **options)) == frames


def test_points_may_be_shares_of_the_frame(predictor, clip):
    answers = []
    for points, normalize in (([[32.0, 48.0]], True), ([[32 / WIDTH, 48 / HEIGHT]], False)):
        state = predictor.init_state(list(clip.frames))
        answers.append(predictor.add_new_points_or_box(state, 0, 1, points, [1], normalize_coords=normalize)[2])
    torch.testing.assert_close(*answers)


def test_added_clicks_join_the_earlier_ones_unless_these_are_cleared(predictor, state):
    predictor.add_new_points_or_box(state, 0, 1, points=[[32, 48]], labels=[1])
    predictor.add_new_points_or_box(state, 0, 1, points=[[5, 5]], labels=[0], clear_old_points=False)
    assert state["point_inputs_per_obj"][0][0]["point_labels"].tolist() == [[1, 0]]
    predictor.add_new_points_or_box(state, 0, 1, points=[[6, 6]], labels=[0], box=[10, 10, 60, 60])
    assert state["point_inputs_per_obj"][0][0]["point_labels"].tolist() == [[2, 3, 0]]


def test_the_newest_kind_of_prompt_on_a_frame_replaces_the_other(predictor, state, clip):
    predictor.add_new_points_or_box(state, 0, 1, points=[[32, 48]], labels=[1])
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    assert (state["point_inputs_per_obj"][0], list(state["mask_inputs_per_obj"][0])) == ({}, [0])
    predictor.add_new_points(state, 0, 1, points=[[32, 48]], labels=[1])
    assert (list(state["point_inputs_per_obj"][0]), state["mask_inputs_per_obj"][0]) == ([0], {})


# Objects come and go


def test_an_object_added_after_tracking_is_tracked_by_the_next_propagation(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    before = track(predictor, state)
    predictor.add_new_mask(state, 2, 2, clip.labels[2] == 2)
    after = track(predictor, state)
    assert all(torch.equal(before[t][0], after[t][0]) for t in before)
    assert iou(after[5][1, 0], clip.labels[5] == 2) > 0.7


def test_objects_added_and_removed_in_the_loop_count_from_the_next_frame(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    seen = []
    for t, obj_ids, logits in predictor.propagate_in_video(state, progress=False):
        seen.append(obj_ids)
        assert len(logits) == len(obj_ids)
        if t == 1:
            predictor.add_new_mask(state, 1, 2, clip.labels[1] == 2)
        if t == 3:
            predictor.remove_object(state, 1)
    assert seen == [[1], [1], [1, 2], [1, 2], [2], [2]]


def test_ids_that_were_handed_out_stay_as_they_were(predictor, state, clip):
    _, obj_ids, _ = predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.reset_state(state)
    assert obj_ids == [1] and state.obj_ids == []


def test_removing_an_object_shows_the_others_on_its_frames(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.add_new_mask(state, 0, 2, clip.labels[0] == 2)
    predictor.add_new_mask(state, 3, 1, clip.labels[3] == 1)
    obj_ids, shown = predictor.remove_object(state, 1)
    assert obj_ids == [2]
    assert [t for t, _ in shown] == [0, 3]
    assert iou(shown[0][1][0, 0], clip.labels[0] == 2) > 0.9
    assert predictor.remove_object(state, 2) == ([], [])
    assert predictor.remove_object(state, 2) == ([], [])


def test_a_prompt_that_is_taken_back_no_longer_counts(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.add_new_mask(state, 2, 1, np.zeros((HEIGHT, WIDTH), bool))
    assert not (track(predictor, state)[2] > 0).any()
    assert predictor.clear_all_prompts_in_frame(state, 2, 1, need_output=False) is None
    assert (track(predictor, state)[2] > 0).any()


# Corrections and options


def corrected(predictor, clip):
    """Track, correct frame 3, and track again: (the correction's answer, what frame 3 shows afterwards, the state)."""
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    track(predictor, state)
    y, x = np.argwhere(clip.labels[3] == 2).mean(0)
    _, _, answer = predictor.add_new_points_or_box(state, 3, 1, points=[[x, y]], labels=[1])
    return answer, track(predictor, state)[3], state


def test_by_default_propagation_tracks_a_corrected_frame_anew(predictor, clip):
    answer, after, _ = corrected(predictor, clip)
    assert not torch.equal(answer, after)


def test_a_corrected_frame_can_count_as_prompted_and_keep_its_answer(clip):
    answer, after, state = corrected(build("++model.add_all_frames_to_correct_as_cond=true"), clip)
    torch.testing.assert_close(answer, after)
    assert sorted(state["output_dict_per_obj"][0]["cond_frame_outputs"]) == [0, 3]


def test_memory_around_a_prompt_can_be_forgotten(clip):
    predictor = build("++model.clear_non_cond_mem_around_input=true")
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    track(predictor, state)
    assert sorted(state.track(1).propagated) == [1, 2, 3, 4, 5]
    predictor.add_new_points_or_box(state, 3, 1, points=[[40, 40]], labels=[0])
    predictor.propagate_in_video_preflight(state)
    assert sorted(state.track(1).propagated) == [3], "memory reaches 7 frames; the corrected frame itself stays"


def test_forgetting_reaches_no_further_than_it_is_told_to():
    blank = torch.zeros(1)
    track = ObjectTrack(propagated={t: FrameOutput(blank, blank, blank) for t in range(10)})
    track.forget_propagated(around=4, reach=2)
    assert sorted(track.propagated) == [0, 1, 4, 7, 8, 9]


def test_shown_masks_need_not_overlap(clip):
    predictor = build("++model.non_overlap_masks=true")
    state = predictor.init_state(list(clip.frames))
    whole = np.ones((HEIGHT, WIDTH), bool)
    predictor.add_new_mask(state, 0, 1, whole)
    _, _, logits = predictor.add_new_mask(state, 0, 2, whole)
    assert ((logits > 0).sum(0) <= 1).all()
    assert all(((masks > 0).sum(0) <= 1).all() for masks in track(predictor, state).values())


def test_holes_are_filled_in_what_is_shown(clip):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:70, 30:90] = True
    mask[40:46, 50:57] = False  # four low-res pixels
    for area, filled in ((8, True), (0, False)):
        predictor = build(f"++model.fill_hole_area={area}")
        state = predictor.init_state(list(clip.frames))
        _, _, logits = predictor.add_new_mask(state, 0, 1, mask)
        assert bool((logits[0, 0, 42:44, 52:55] > 0).all()) == filled


@pytest.mark.parametrize("option", ["offload_video_to_cpu", "offload_state_to_cpu", "async_loading_frames"])
def test_offloading_changes_no_answer(predictor, clip, option):
    answers = []
    for chosen in ({}, {option: True}):
        state = predictor.init_state(list(clip.frames), **chosen)
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        answers.append(track(predictor, state))
    assert all(torch.equal(answers[0][t], answers[1][t]) for t in answers[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_tracks_alike_with_and_without_the_callers_autocast(clip, dtype):
    def session(model):
        state = model.init_state(list(clip.frames))
        model.add_new_points_or_box(state, 0, 2, points=[[30, 40]], labels=[1])
        model.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        return torch.stack([*track(model, state).values()])[:, :, 0]  # (frames, objects, H, W)

    reduced = build(*LARGER, dtype=dtype)
    masks = session(reduced)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(session(reduced), masks)
    assert not torch.is_autocast_enabled("cpu"), "a session must leave no autocast behind"
    pairs = zip(masks.flatten(0, 1), session(build(*LARGER)).flatten(0, 1).numpy() > 0, strict=True)
    assert np.mean([iou(logits, exact) for logits, exact in pairs]) > 0.95


def test_memory_is_kept_as_bfloat16_and_read_without_object_pointers(clip):
    predictor = build_sam2_video_predictor(
        "nano", None, device="cpu",
        hydra_overrides_extra=[
            "++model.image_size=128", "++model.skip_mad_threshold=0", "++model.use_obj_ptrs_in_encoder=false",
            "++model.fixed_no_obj_ptr=false",
        ],
    )  # fmt: skip
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    assert torch.isfinite(track(predictor, state)[3]).all()
    assert state.track(1).propagated[3].maskmem_features.dtype == torch.bfloat16


def test_a_single_frame_can_be_corrected_after_tracking(predictor, clip):
    state = predictor.init_state(clip.frames[:1])
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    track(predictor, state)
    _, _, logits = predictor.add_new_points_or_box(state, 0, 1, points=[[5, 5]], labels=[0])
    assert torch.isfinite(logits).all()


class WatchForDoubles(TorchDispatchMode):
    """Fails on any operation that makes a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            assert not (isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64), f"{func} made a float64 tensor"
        return result


def test_no_float64_tensor_is_ever_made(clip):
    with WatchForDoubles():
        predictor = build()
        state = predictor.init_state(list(clip.frames), async_loading_frames=True)
        predictor.add_new_points_or_box(state, 0, 1, points=np.array([[30.0, 40.0]]), labels=np.array([1]))
        predictor.add_new_points_or_box(state, 0, 2, box=np.array([10.0, 10.0, 60.0, 60.0]))
        predictor.add_new_mask(state, 0, 3, (clip.labels[0] == 1).astype(np.float64))
        track(predictor, state)
        predictor.add_new_points_or_box(state, 2, 1, points=[[30, 40]], labels=[0])
        track(predictor, state, start_frame_idx=4, reverse=True)


# Upstream's names


def test_the_state_reads_like_upstreams_dict(predictor, state, clip):
    predictor.add_new_mask(state, 0, 7, clip.labels[0] == 1)
    predictor.add_new_points_or_box(state, 1, 8, points=[[30, 40]], labels=[1])
    assert (state["num_frames"], state["video_height"], state["video_width"]) == (LENGTH, HEIGHT, WIDTH)
    assert (state["obj_ids"], state["obj_id_to_idx"], state["obj_idx_to_id"]) == ([7, 8], {7: 0, 8: 1}, {0: 7, 1: 8})
    assert state["images"][0].shape == (3, 128, 128)
    assert list(state["temp_output_dict_per_obj"][0]["cond_frame_outputs"]) == [0]
    track(predictor, state)
    outputs = state["output_dict_per_obj"][0]
    assert list(outputs["cond_frame_outputs"]) == [0] and list(outputs["non_cond_frame_outputs"]) == [1, 2, 3, 4, 5]
    assert outputs["non_cond_frame_outputs"][2]["obj_ptr"].shape == (1, 128)
    assert state["frames_tracked_per_obj"][1][5] == {"reverse": False}
    assert "obj_ids" in state and "frames" not in state and state.get("no such name") is None
    assert dict(state.items())["num_frames"] == LENGTH
    with pytest.raises(KeyError, match="'frames' is not part of the session state"):
        state["frames"]


# Bad input


def points(**changes):
    return {"frame_idx": 0, "obj_id": 1, "points": [[30, 40]], "labels": [1]} | changes


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (points(frame_idx=LENGTH), r"frame_idx must be a frame in \[0, 5\], got 6"),
        (points(frame_idx=-1), r"frame_idx must be a frame in \[0, 5\], got -1"),
        (points(frame_idx=1.5), "frame_idx must be a frame"),
        (points(frame_idx=None), "frame_idx must be a frame"),
        (points(labels=None), "points were given without labels"),
        (points(points=None), "labels were given without points"),
        (points(points=None, labels=None), "give points with labels, a box, or both"),
        (points(labels=[1, 0]), r"labels must be \(1,\), one for each of the points \(1, 2\), got \(2,\)"),
        (points(labels=[7]), r"labels must be 1 \(positive\) or 0 \(negative\), got \[7.0\]"),
        (points(points=[30, 40]), r"points must be \(P, 2\), got \(2,\)"),
        (points(points=[[np.nan, 4]]), "points must be finite"),
        (points(box=[0, 0, np.inf, 5]), "box must be finite"),
        (points(box=[1, 2, 3]), r"box must be 4 numbers .*, got shape \(3,\)"),
        (points(box=[WIDTH + 1, 0, WIDTH + 50, 20]), "box must touch the frame of width 128 and height 96"),
        (points(box=[-20, -20, -1, -1]), "box must touch the frame"),
        (points(box=[0, 0, 9, 9], clear_old_points=False), "needs clear_old_points=True"),
    ],
)
def test_bad_clicks_and_boxes_are_refused_and_leave_the_session_as_it_was(predictor, state, clip, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.add_new_points_or_box(state, **prompt)
    assert state.obj_ids == []
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    assert len(track(predictor, state)) == LENGTH


def test_points_that_are_no_numbers_are_refused(predictor, state):
    with pytest.raises(TypeError, match="points must be numbers, got str"):
        predictor.add_new_points_or_box(state, 0, 1, points="here", labels=[1])


@pytest.mark.parametrize("shape", [(HEIGHT + 1, WIDTH), (WIDTH, HEIGHT), (1, HEIGHT, WIDTH), (HEIGHT,)])
def test_a_mask_of_another_shape_is_refused(predictor, state, shape):
    with pytest.raises(ValueError, match=r"mask must be one object's .* \(96, 128\) or \(128, 128\), got shape"):
        predictor.add_new_mask(state, 0, 1, np.ones(shape, bool))
    with pytest.raises(ValueError, match="frame_idx"):
        predictor.add_new_mask(state, 99, 1, np.ones((HEIGHT, WIDTH), bool))
    assert state.obj_ids == []


@pytest.mark.parametrize("make", [torch.full, np.full])
def test_a_mask_with_numbers_that_are_not_finite_is_refused(predictor, state, make):
    with pytest.raises(ValueError, match="mask must be finite"):
        predictor.add_new_mask(state, 0, 1, make((HEIGHT, WIDTH), float("nan")))


@pytest.mark.parametrize("kind", ["bool", "uint8 255", "float", "tensor", "uint8 tensor"])
def test_masks_of_any_kind_of_numbers_mean_the_same(predictor, state, clip, kind):
    mask = clip.labels[0] == 1
    given = {
        "bool": mask, "uint8 255": mask.astype(np.uint8) * 255, "float": mask.astype(np.float32),
        "tensor": torch.from_numpy(mask).float(), "uint8 tensor": torch.from_numpy(mask.astype(np.uint8) * 255),
    }[kind]  # fmt: skip
    predictor.add_new_mask(state, 0, 1, mask)
    wanted = state["mask_inputs_per_obj"][0][0]
    predictor.add_new_mask(state, 0, 1, given)
    assert torch.equal(state["mask_inputs_per_obj"][0][0], wanted)


def test_all_memory_shares_one_position_encoding(clip):
    predictor = build(dtype="bfloat16")
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.add_new_mask(state, 0, 2, clip.labels[0] == 2)
    track(predictor, state)
    banks = [state.track(obj_id).bank for obj_id in (1, 2)]
    outputs = [out for bank in banks for store in (bank.prompted, bank.propagated) for out in store.values()]
    assert len(outputs) == 2 * LENGTH
    assert len({out.maskmem_pos_enc[-1].untyped_storage().data_ptr() for out in outputs}) == 1


def test_a_mask_may_have_the_networks_own_size(predictor, state, clip):
    square = np.zeros((128, 128), bool)
    square[20:80, 30:90] = True
    _, _, logits = predictor.add_new_mask(state, 0, 1, square)
    assert logits.shape == (1, 1, HEIGHT, WIDTH)


@pytest.mark.parametrize(("size", "warns"), [(1, True), (12, False), (0, False)])
def test_a_mask_too_small_for_the_network_is_a_warning_that_names_it(predictor, clip, caplog, size, warns):
    large = np.repeat(np.repeat(clip.frames[:3], 6, axis=1), 6, axis=2)
    state = predictor.init_state(list(large))
    mask = np.zeros(large.shape[1:3], bool)
    mask[100 : 100 + size, 100 : 100 + size] = True
    predictor.add_new_mask(state, 2, "fly", mask)
    found = [record.message for record in caplog.records if "is empty" in record.message]
    assert len(found) == warns and all("the mask of obj_id 'fly' on frame 2" in message for message in found)


def test_an_unknown_object_is_named(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    with pytest.raises(ValueError, match=r"obj_id 4 is not in this session; its objects are \[1\]"):
        predictor.clear_all_prompts_in_frame(state, 0, 4)
    with pytest.raises(RuntimeError, match="obj_id 4 is not in this session"):
        predictor.remove_object(state, 4, strict=True)
    assert state.obj_ids == [1]


def test_propagation_without_a_prompt_says_what_is_missing(predictor, state, clip):
    with pytest.raises(RuntimeError, match="nothing to track: add points, a box or a mask for an object first"):
        track(predictor, state)
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.clear_all_prompts_in_frame(state, 0, 1)
    with pytest.raises(RuntimeError, match="nothing to track for obj_id 1"):
        track(predictor, state)


def test_bad_propagation_arguments_are_refused(predictor, state, clip):
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    with pytest.raises(ValueError, match="start_frame_idx must be a frame"):
        predictor.propagate_in_video(state, start_frame_idx=77, reverse=True)
    with pytest.raises(ValueError, match="max_frame_num_to_track must not be negative, got -1"):
        predictor.propagate_in_video(state, max_frame_num_to_track=-1)


def test_a_folder_that_is_missing_or_empty_is_refused(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predictor.init_state(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=str(tmp_path)):
        predictor.init_state(str(tmp_path))


def test_a_failure_in_the_network_adds_no_object(predictor, state, clip, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "track", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    assert state.obj_ids == []

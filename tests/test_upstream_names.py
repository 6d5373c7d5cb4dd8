"""Code written for upstream's package: what it reads, deletes, sets, calls and replaces of a session and a predictor.

The small embedded model runs at 128 pixels.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sessions import session, track

import sam2.modeling.sam2_base
import sam2.sam2_video_predictor
from sam2.build_sam import build_sam2_video_predictor, packaged_file
from sam2.modeling.outputs import FrameOutput
from sam2.modeling.upstream_steps import STEPS
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.misc import load_video_frames

LENGTH = 12
NANO = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")
COMPACT = {"maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr", "object_score_logits"}


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, 96, 128, num_objects=2, seed=8)


@pytest.fixture
def predictor():
    small = ["++model.image_size=128", "++model.skip_mad_threshold=0"]
    return build_sam2_video_predictor("nano", NANO, device="cpu", hydra_overrides_extra=small)


def outputs_of(state, index=0):
    return state["output_dict_per_obj"][index]["non_cond_frame_outputs"]


# Reading


@pytest.mark.parametrize("keep", ["window", "all"])
def test_every_frame_shows_its_score_in_the_loop_skipped_ones_too(predictor, clip, keep):
    predictor.skip_mad_threshold = 1000.0
    state = session(predictor, clip, keep=keep)
    for t, _, logits in predictor.propagate_in_video(state, progress=False):
        outputs = state["output_dict_per_obj"][0]
        found = {**outputs["cond_frame_outputs"], **outputs["non_cond_frame_outputs"]}
        assert sorted(found) == sorted(state["frames_tracked_per_obj"][0]) == list(range(t + 1))
        assert found[t]["object_score_logits"].shape == (1, 1)
        assert found[t]["pred_masks"].shape == (1, 1, 32, 32) and logits.shape[-2:] == (96, 128)
    assert len(state.track(1).faded_carried) == (LENGTH - 10 if keep == "window" else 0)
    assert all(outputs_of(state)[t]["obj_ptr"] is None for t in range(1, LENGTH)), "they are shown, never remembered"


def test_outputs_of_all_kinds_read_like_dicts(predictor, clip):
    state = session(predictor, clip)
    track(predictor, state, max_frame_num_to_track=10)
    predictor.skip_mad_threshold = 1000.0
    track(predictor, state, start_frame_idx=10)
    outputs = outputs_of(state)
    assert [type(outputs[t]).__name__ for t in (5, 8, 11)] == ["FadedOutput", "FrameOutput", "CarriedMask"]
    for output in (outputs[5], outputs[8], outputs[11]):
        assert COMPACT <= set(output.keys()) and "obj_ptr" in output
        assert "device" not in output and output.get("device") is None
        assert dict(output.items())["pred_masks"].shape == output.pred_masks.shape == (1, 1, 32, 32)
        assert len(output) == len(list(output))
        with pytest.raises(KeyError):
            output["device"]


def test_images_read_like_a_tensor(predictor, clip):
    images = session(predictor, clip)["images"]
    assert images.shape == (LENGTH, 3, 128, 128) and images.size() == images.shape and images.size(0) == LENGTH
    assert torch.equal(images[2:4], torch.stack([images[2], images[3]])) and images[-1:].shape == (1, 3, 128, 128)
    assert images[5:5].shape == (0, 3, 128, 128)


# Forgetting by hand


def test_frames_that_are_deleted_are_out_of_memory(predictor, clip):
    state, untouched = session(predictor, clip), session(predictor, clip)
    expected = track(predictor, untouched)
    seen = {}
    for t, _, logits in predictor.propagate_in_video(state, progress=False):
        seen[t] = logits
        if t == 3:
            assert outputs_of(state).pop(2).obj_ptr is not None and outputs_of(state).pop(99, None) is None
            assert sorted(state.track(1).bank.propagated) == [1, 3]
        if t == 5:
            outputs_of(state).clear()
            assert not outputs_of(state) and not state.track(1).bank.propagated
    assert torch.equal(seen[3], expected[3]) and not torch.equal(seen[4], expected[4])
    state["frames_tracked_per_obj"][0].pop(4)
    state["mask_inputs_per_obj"][0].pop(0)
    assert 4 not in state.track(1).tracked and not state.track(1).masks


def test_a_loop_may_drop_the_memory_of_old_frames_whatever_became_of_them(predictor, clip):
    predictor.skip_mad_threshold = 1000.0
    state = session(predictor, clip)
    track(predictor, state, max_frame_num_to_track=2)
    predictor.skip_mad_threshold = 0
    track(predictor, state, start_frame_idx=3)
    outputs = outputs_of(state)
    kinds = {type(output).__name__ for output in outputs.values()}
    assert kinds == {"CarriedMask", "FadedOutput", "FrameOutput"}
    for output in outputs.values():
        output["maskmem_features"] = output["maskmem_pos_enc"] = None
    assert all(output.maskmem_features is None for output in outputs.values())
    with pytest.raises(TypeError, match="'pred_masks' of a frame that was packed or skipped cannot be set"):
        outputs[5]["pred_masks"] = outputs[11]["pred_masks"]


def test_the_cache_of_encoded_frames_can_be_filled_and_emptied(predictor, clip, monkeypatch):
    state = session(predictor, clip)
    image, encoded = state["cached_features"][0]
    assert torch.equal(image, state["images"][0][None]) and image.shape == (1, 3, 128, 128)
    assert [level.shape[-1] for level in encoded["backbone_fpn"]] == [32, 16, 8]
    assert len(encoded["vision_pos_enc"]) == 3 and encoded["vision_features"].shape[-1] == 8

    state["cached_features"] = {}
    assert not state["cached_features"]
    with torch.inference_mode():
        state["cached_features"] = {t: (None, predictor.forward_image(state["images"][t : t + 1])) for t in range(2)}
    calls = []
    monkeypatch.setattr(predictor, "forward_image", calls.append)
    found = track(predictor, state, max_frame_num_to_track=1)
    assert not calls
    monkeypatch.undo()
    assert torch.equal(found[1], track(predictor, session(predictor, clip))[1])


@pytest.mark.parametrize(
    "write",
    [
        lambda state: state.__setitem__("images", torch.zeros(1)),
        lambda state: state.__setitem__("num_frames", 9),
        lambda state: state.pop("video_height"),
        lambda state: state["output_dict_per_obj"].clear(),
        lambda state: state["output_dict_per_obj"][0].update(non_cond_frame_outputs={}),
        lambda state: state["obj_id_to_idx"].setdefault(5, 1),
        lambda state: state["constants"].pop("maskmem_pos_enc"),
        lambda state: state["cached_features"][0][1].clear(),
        lambda state: state["point_inputs_per_obj"][1][0].update(point_labels=None),
    ],
)
def test_what_cannot_be_set_says_what_to_use_instead(predictor, clip, write):
    state = session(predictor, clip)
    predictor.add_new_points_or_box(state, 0, 2, points=[[20, 20]], labels=[1])
    with pytest.raises(TypeError, match=r"cannot be set from outside: .*predictor.stream\(\).*keep=.*reset_state"):
        write(state)
    assert len(track(predictor, state)) == LENGTH


@pytest.mark.parametrize("route", ["waiting prompt", "prompt", "prompt taken away", "object taken away"])
def test_what_is_changed_by_hand_in_a_loop_makes_the_next_frame_a_key_frame(predictor, clip, route):
    predictor.skip_mad_threshold = 1000.0
    state = session(predictor, clip, obj_ids=(1, 2))
    shown = {}
    for t, obj_ids, logits in predictor.propagate_in_video(state, progress=False):
        shown[t] = dict(zip(obj_ids, (logits > 0).flatten(1).any(1).tolist(), strict=True))
        if t == 3:
            prompts = state["output_dict_per_obj"][0]["cond_frame_outputs"]
            if route == "waiting prompt":
                state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][3] = prompts[0]
            elif route == "prompt":
                prompts[3] = prompts[0]
            elif route == "prompt taken away":
                prompts.clear()
            else:
                del state.objects[2]
    assert [state.decision_of[t].action for t in (3, 4, 5)] == ["reused", "processed", "reused"]
    expected = {"prompt taken away": {1: False, 2: True}, "object taken away": {1: True}}
    assert shown[3] == {1: True, 2: True} and shown[5] == expected.get(route, shown[3])


def test_frames_that_a_stream_has_no_longer_are_shown_without_their_image(predictor, clip):
    predictor.skip_mad_threshold = 1000.0
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        for frame in clip.frames[:3]:
            stream.step(frame)
        cached = dict(stream.state["cached_features"].items())
    assert [image for image, _ in cached.values()] == [None] and cached[0][1]["backbone_fpn"]


def test_a_session_is_equal_to_itself_alone(predictor, clip):
    state = session(predictor, clip)
    copied = copy.deepcopy(state)
    assert state == state and state != copied and copied in [state, copied] and len({state, copied}) == 2


def test_names_of_the_users_own_can_be_kept_in_the_session(predictor, clip):
    state = session(predictor, clip)
    state["frame_names"] = ["a", "b"]
    state.update(owner="me")
    assert state["frame_names"] == ["a", "b"] and "owner" in state and dict(state)["owner"] == "me"
    del state["owner"]
    with pytest.raises(KeyError, match="'owner' is not part of the session state"):
        state["owner"]


# Copies


def test_a_copied_session_goes_its_own_way(predictor, clip):
    predictor.skip_mad_threshold, predictor.max_consecutive_skips = 1000.0, 1
    state = session(predictor, clip, obj_ids=(1, 2))
    track(predictor, state, max_frame_num_to_track=5)
    state["tags"] = ["first"]
    other = copy.deepcopy(state)
    state["tags"].append("second")
    predictor.remove_object(state, 1)
    assert (other.obj_ids, other["tags"], other.decisions) == ([1, 2], ["first"], state.decisions)
    assert other.frames is state.frames

    expected = session(predictor, clip, obj_ids=(1, 2))
    track(predictor, expected, max_frame_num_to_track=5)
    found, expected = (track(predictor, each, start_frame_idx=6) for each in (other, expected))
    assert found.keys() == expected.keys() and all(torch.equal(found[t], expected[t]) for t in found)
    with pytest.raises(TypeError, match=r"use predictor.save\(state, path\)"):
        pickle.dumps(state)
    assert copy.copy(state).objects is state.objects


# Loops


def test_a_loop_may_be_made_before_its_prompts(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    answers = predictor.propagate_in_video(state, progress=False)
    results = predictor.propagate_results(state, progress=False, obj_ids=[1])
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    assert len(list(answers)) == len(list(results)) == LENGTH


def test_a_loop_that_starts_after_the_last_frame_has_nothing_to_do(predictor, clip):
    state = session(predictor, clip)
    assert track(predictor, state, start_frame_idx=LENGTH) == {}
    for wrong, options in ((LENGTH, {"reverse": True}), (-1, {}), (1.5, {})):
        with pytest.raises(ValueError, match=r"start_frame_idx must be a frame in \[0, 11\]"):
            predictor.propagate_in_video(state, start_frame_idx=wrong, **options)


def propagate_by_hand(predictor, state):
    """A loop over upstream's inner methods, as forks have it."""
    predictor.propagate_in_video_preflight(state)
    for t in range(state["num_frames"]):
        masks = []
        for index in range(predictor._get_obj_num(state)):
            outputs = state["output_dict_per_obj"][index]
            if t in outputs["cond_frame_outputs"]:
                masks.append(outputs["cond_frame_outputs"][t]["pred_masks"])
                continue
            output, mask = predictor._run_single_frame_inference(
                inference_state=state, output_dict=outputs, frame_idx=t, batch_size=1, is_init_cond_frame=False,
                point_inputs=None, mask_inputs=None, reverse=False, run_mem_encoder=True,
            )  # fmt: skip
            outputs["non_cond_frame_outputs"][t] = dict(output) if t == 1 else output
            state["frames_tracked_per_obj"][index][t] = {"reverse": False}
            masks.append(mask)
        yield t, predictor._get_orig_video_res_output(state, torch.cat(masks))[1]


def test_a_loop_over_the_inner_methods_tracks_as_propagation_does(predictor, clip):
    state = session(predictor, clip, obj_ids=(1, 2))
    assert (predictor._obj_id_to_idx(state, 2), predictor._obj_idx_to_id(state, 1)) == (1, 2)
    with torch.inference_mode():
        found = dict(propagate_by_hand(predictor, state))
    expected = track(predictor, session(predictor, clip, obj_ids=(1, 2)))
    assert found.keys() == expected.keys()
    for t in found:  # features go through another layout here, which rounds otherwise
        assert (found[t] - expected[t]).abs().max() < 1e-5 * expected[t].abs().max()
    assert state.track(2).tracked[LENGTH - 1] is False and isinstance(outputs_of(state)[1], FrameOutput)
    with pytest.raises(ValueError, match="batch_size must be 1, got 2"), torch.inference_mode():
        predictor._run_single_frame_inference(state, {}, 0, 2, True, None, None, False, False)


def test_skipped_frames_are_no_memory_for_a_loop_over_the_inner_methods(predictor, clip):
    predictor.skip_mad_threshold = 1000.0
    state = session(predictor, clip, keep="all")
    track(predictor, state, max_frame_num_to_track=3)
    with torch.inference_mode():
        output, _ = predictor._run_single_frame_inference(
            state, state["output_dict_per_obj"][0], 4, 1, False, None, None, False, True
        )
    predictor.skip_mad_threshold = 0
    assert 4 not in state.track(1).propagated
    track(predictor, state, start_frame_idx=4, max_frame_num_to_track=0)
    assert torch.equal(output.pred_masks, state.track(1).propagated[4].pred_masks)


def test_encoded_frames_can_be_asked_for(predictor, clip):
    state = session(predictor, clip)
    with torch.inference_mode():
        image, encoded, tokens, positions, sizes = predictor._get_image_feature(state, 3, 2)
    assert image.shape == (2, 3, 128, 128) and sizes == [(32, 32), (16, 16), (8, 8)]
    assert [x.shape[:2] for x in tokens] == [x.shape[:2] for x in positions] == [(1024, 2), (256, 2), (64, 2)]
    assert encoded["backbone_fpn"][-1].shape[-1] == 8


def test_memory_that_is_written_by_hand_is_the_sessions(predictor, clip):
    state = session(predictor, clip)
    found = predictor._consolidate_temp_output_across_obj(state, 0, is_cond=True)["pred_masks"]
    high_res = F.interpolate(found, (128, 128), mode="bilinear", align_corners=False)
    score = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][0]["object_score_logits"]
    with torch.inference_mode():
        memory, positions = predictor._run_memory_encoder(state, 0, 1, high_res, score, is_mask_from_pts=True)
    assert torch.equal(positions[0], state["constants"]["maskmem_pos_enc"][0])
    predictor.propagate_in_video_preflight(state)
    output = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
    assert memory.dtype == torch.bfloat16 and (memory - output["maskmem_features"]).abs().max() < 0.02
    batch = predictor._get_maskmem_pos_enc(state, {"maskmem_pos_enc": [torch.zeros(3, *positions[0].shape[1:])]})
    assert batch[0].shape[0] == 3 and torch.equal(batch[0][1:2], positions[0])
    assert predictor._get_maskmem_pos_enc(state, {"maskmem_pos_enc": None}) is None


def test_the_masks_of_all_objects_on_a_frame_can_be_asked_for(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    _, _, shown = predictor.add_new_mask(state, 0, 2, clip.labels[0] == 2)
    found = predictor._consolidate_temp_output_across_obj(state, 0, is_cond=True, consolidate_at_video_res=True)
    assert torch.equal(found["pred_masks_video_res"], shown)
    for frame_idx, is_cond in ((0, False), (1, True)):
        nothing = predictor._consolidate_temp_output_across_obj(state, frame_idx, is_cond)["pred_masks"]
        assert nothing.shape == (2, 1, 32, 32) and (nothing == -1024).all()


def test_what_was_tracked_around_a_frame_can_be_forgotten(predictor, clip):
    state = session(predictor, clip, keep="all")
    track(predictor, state)
    predictor._clear_non_cond_mem_around_input(state, 1)
    assert list(outputs_of(state)) == list(range(7, LENGTH)) and list(state.track(1).prompted) == [0]


def test_results_can_be_reset_and_the_objects_kept(predictor, clip):
    state = session(predictor, clip, obj_ids=(1, 2))
    track(predictor, state, max_frame_num_to_track=2)
    predictor._reset_tracking_results(state)
    assert state.obj_ids == [1, 2] and not state.decisions and not outputs_of(state)
    with pytest.raises(RuntimeError, match="nothing to track for obj_id 1"):
        track(predictor, state)
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
    found, expected = track(predictor, state), track(predictor, session(predictor, clip, obj_ids=(1, 2)))
    assert all(torch.equal(found[t], expected[t]) for t in expected)


def test_an_id_that_is_looked_up_is_an_object_without_a_prompt(predictor, clip):
    state = session(predictor, clip)
    assert predictor._obj_id_to_idx(state, "new") == 1 and state.obj_ids == [1, "new"]
    with pytest.raises(RuntimeError, match="nothing to track for obj_id 'new'"):
        track(predictor, state)


# Steps that a subclass overrides


def with_steps(predictor, **steps):
    predictor.__class__ = type("Own", (SAM2VideoPredictor,), steps)
    return predictor


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_a_subclass_overrides_is_part_of_tracking(predictor, clip, name):
    expected = track(predictor, session(predictor, clip, obj_ids=(1, 2)), max_frame_num_to_track=2)
    calls = []

    def step(self, *args, **kwargs):
        calls.append(name)
        return getattr(super(type(self), self), name)(*args, **kwargs)

    own = with_steps(predictor, **{name: step})
    found = track(own, session(own, clip, obj_ids=(1, 2)), max_frame_num_to_track=2)
    # Two objects: prompted, answered by their mask with a pointer from the decoder, written to memory, then tracked.
    times = {"_use_mask_as_output": 2, "_prepare_memory_conditioned_features": 4}.get(name, 6)
    assert len(calls) == times
    for t in expected:
        assert (found[t] - expected[t]).abs().max() < 1e-5 * expected[t].abs().max()


def test_the_mask_that_a_subclass_chooses_is_the_one_that_is_tracked(predictor, clip):
    def worst(self, *args, **kwargs):
        low_multi, high_multi, ious, *_, pointer, score = super(type(self), self)._forward_sam_heads(*args, **kwargs)
        index = int(ious.argmin())
        low, high = (masks[:, index : index + 1] for masks in (low_multi, high_multi))
        return low_multi, high_multi, ious, low, high, pointer, score

    own = with_steps(predictor, _forward_sam_heads=worst)
    state = own.init_state(list(clip.frames))
    _, _, shown = own.add_new_points_or_box(state, 0, 1, points=[[60, 50]], labels=[1])
    output = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][0]
    plain = with_steps(own)
    best = plain.add_new_points_or_box(plain.init_state(list(clip.frames)), 0, 1, points=[[60, 50]], labels=[1])[2]
    assert not torch.equal(shown, best) and output["ious"].shape == (1, 1)


def test_a_tracked_frame_may_be_a_dict_and_a_step_a_function_of_the_instance(predictor, clip):
    expected = track(predictor, session(predictor, clip), max_frame_num_to_track=2)
    steps = predictor.track_step

    def track_step(**given):
        kept = {name: value for name, value in steps(**given).items() if name != "ious"}
        return {**kept, "own": given["output_dict"]["cond_frame_outputs"].keys()}

    predictor.track_step = track_step
    state = session(predictor, clip)
    found = track(predictor, state, max_frame_num_to_track=2)
    assert all((found[t] - expected[t]).abs().max() < 1e-5 * expected[t].abs().max() for t in expected)
    assert outputs_of(state)[2]["ious"].item() == 1.0


def test_a_subclass_may_read_memory_as_it_is_stored(predictor, clip):
    def read(self, current_vision_feats, current_vision_pos_embeds, feat_sizes, output_dict, **given):
        memories = output_dict["cond_frame_outputs"].values()
        if given["is_init_cond_frame"]:
            return super(type(self), self)._prepare_memory_conditioned_features(
                current_vision_feats=current_vision_feats, current_vision_pos_embeds=current_vision_pos_embeds,
                feat_sizes=feat_sizes, output_dict=output_dict, **given,
            )  # fmt: skip
        memory = torch.cat([each["maskmem_features"].flatten(2).permute(2, 0, 1) for each in memories])
        places = torch.cat([each["maskmem_pos_enc"][-1].flatten(2).permute(2, 0, 1) for each in memories])
        assert memory.dtype == torch.bfloat16
        tokens = self.memory_attention(current_vision_feats, memory, current_vision_pos_embeds, places)
        return tokens.permute(1, 2, 0).unflatten(2, feat_sizes[-1])

    own = with_steps(predictor, _prepare_memory_conditioned_features=read)
    assert len(track(own, session(own, clip), max_frame_num_to_track=2)) == 3


# Names that others replace


def test_init_state_loads_frames_by_the_name_in_its_module(predictor, clip, monkeypatch):
    module = sam2.sam2_video_predictor
    monkeypatch.setattr(module, "load_video_frames", lambda **given: load_video_frames(**given | {"video_path": blank}))
    blank = np.zeros((3, 40, 50, 3), np.uint8)
    state = predictor.init_state("no such video")
    assert (state.num_frames, state.video_height, state.video_width) == (3, 40, 50)
    monkeypatch.setattr(module, "load_video_frames", lambda **given: (torch.zeros(3, 3, 128, 128), 40, 50))
    with pytest.raises(TypeError, match="load_video_frames must return a FrameLoader, got Tensor"):
        predictor.init_state("no such video")


def test_prompted_frames_are_chosen_by_the_name_in_the_models_module(predictor, clip, monkeypatch):
    state = session(predictor, clip)
    predictor.add_new_mask(state, 1, 1, clip.labels[1] == 1)
    expected = track(predictor, copy.deepcopy(state))
    monkeypatch.setattr(
        sam2.modeling.sam2_base, "select_closest_cond_frames", lambda t, frames, limit: ({0: frames[0]}, {})
    )
    assert not torch.equal(track(predictor, state)[2], expected[2])

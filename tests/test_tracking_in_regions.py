"""Tracking with search regions: each object in its own, through streams, skipping, saving, corrections and prompts."""

import copy
import math

import numpy as np
import pytest
import torch
from sessions import session, track

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.modeling.outputs import FrameRequest, PointInputs
from sam2.modeling.search_region import (
    Box,
    Region,
    box_of_mask,
    box_of_points,
    logits_in_region,
    next_region,
    region_around,
)
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.prompts import resize_mask
from sam2.video_propagation import known_result
from sam2.video_state import ObjectTrack

HEIGHT, WIDTH, LENGTH = 240, 320, 14


def build(**options):
    return build_sam2_video_predictor(device="cpu", **options)


@pytest.fixture(scope="module")
def clip():
    """Two small things that move."""
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3)


@pytest.fixture(scope="module")
def model():
    return build(image_size=128)


@pytest.fixture
def predictor(model):
    model.search_factor, model.skipping = 1.25, SkipOptions(0)
    yield model
    model.search_factor, model.skipping = None, SkipOptions()


def overlap(logits, mask):
    found = np.asarray(logits > 0)
    return (found & mask).sum() / (found | mask).sum()


def mean_overlap(shown, clip, index, obj_id):
    return np.mean([overlap(shown[t][index, 0], clip.labels[t] == obj_id) for t in range(1, LENGTH)])


def test_small_objects_are_found_better_than_in_the_whole_frame(predictor, clip):
    near = track(predictor, session(predictor, clip, [1, 2]))
    predictor.search_factor = None
    far = track(predictor, session(predictor, clip, [1, 2]))
    gains = [mean_overlap(near, clip, i, i + 1) - mean_overlap(far, clip, i, i + 1) for i in (0, 1)]
    assert min(gains) > 0.05, gains


def test_each_object_has_a_region_of_its_own_that_follows_it(predictor, clip):
    state = session(predictor, clip, [1, 2])
    track(predictor, state)
    for obj_id in (1, 2):
        for t in range(LENGTH):
            region = state.track(obj_id).region(t)
            assert region is not None and region != Region.whole(state.frame_size)
            rows, columns = np.nonzero(clip.labels[t] == obj_id)
            assert region.left <= np.median(columns) <= region.left + region.width
            assert region.top <= np.median(rows) <= region.top + region.height


def test_without_a_factor_sessions_keep_masks_as_sam_2_does(predictor, clip):
    predictor.search_factor = None
    state = session(predictor, clip, [1])
    assert state.track(1).pending_prompted[0].pred_masks.shape == (1, 1, 32, 32)
    assert state.track(1).region(0) is None


def test_without_a_factor_masks_of_another_size_by_a_subclass_stay_what_they_are(clip):
    class Fine(SAM2VideoPredictor):
        def track_step(self, *args, **kwargs):
            output = super().track_step(*args, **kwargs)
            output["pred_masks"] = torch.nn.functional.interpolate(output["pred_masks"], scale_factor=2)
            return output

    target = f"++model._target_={__name__}.{Fine.__name__}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), Fine.__name__, Fine)
        predictor = build(image_size=128, hydra_overrides_extra=[target])
    predictor.skip_mad_threshold = 0
    state = session(predictor, clip)
    track(predictor, state, max_frame_num_to_track=1)
    assert {output.pred_masks.shape[-1] for output in state.track(1).propagated.values()} == {64}


def test_the_factor_of_a_session_stays_what_it_was_when_it_was_opened(predictor, clip):
    expected = track(predictor, session(predictor, clip, [1]))
    state = session(predictor, clip, [1])
    predictor.search_factor = None
    found = track(predictor, state)
    assert all(torch.equal(found[t], expected[t]) for t in expected)


def test_an_objects_masks_are_the_same_whatever_the_others_are(predictor, clip):
    both, alone = track(predictor, session(predictor, clip, [1, 2])), track(predictor, session(predictor, clip, [2]))
    assert all(torch.equal(both[t][1], alone[t][0]) for t in alone)


def test_a_stream_answers_as_propagation_does(predictor, clip):
    clip_of_16 = draw_clip(16, HEIGHT, WIDTH, num_objects=1, seed=3)
    offline = track(predictor, session(predictor, clip_of_16, [1]))
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip_of_16.labels[0] == 1)
        for t, frame in enumerate(clip_of_16.frames):
            result = stream.step(frame)
            assert np.array_equal(result.objects[0].mask, np.asarray(offline[t][0, 0] > 0)), t


@pytest.mark.parametrize("kind", ["new", "correction"])
def test_two_objects_prompted_on_the_frame_that_a_stream_has_just_left_are_tracked(predictor, clip, kind):
    with predictor.stream(color="rgb") as stream:
        for t in range(3):
            stream.step(clip.frames[t])
        for obj_id in (1, 2):
            stream.prompt(obj_id, mask=clip.labels[2] == obj_id)
        if kind == "correction":
            stream.step(clip.frames[3])
            for obj_id in (1, 2):
                rows, columns = np.nonzero(clip.labels[3] == obj_id)
                stream.prompt(obj_id, points=[[np.median(columns), np.median(rows)]], labels=[1])
        result = stream.step(clip.frames[stream.frame_idx + 1])
        assert [each.obj_id for each in result.objects] == [1, 2]
        for each in result.objects:
            assert overlap(np.where(each.mask, 1, -1), clip.labels[stream.frame_idx] == each.obj_id) > 0.6


def test_tracking_the_same_frames_again_with_look_ahead_gives_the_same_masks(predictor):
    slow = draw_clip(24, HEIGHT, WIDTH, num_objects=1, seed=3)
    predictor.skipping = SkipOptions(0.3, "memory_guided", lookahead=5)
    state = session(predictor, slow, [1])
    first, second = track(predictor, state), track(predictor, state)
    assert any(decision.action == "warped" for decision in state.decisions)
    assert all(torch.equal(first[t], second[t]) for t in first)


@pytest.mark.parametrize("keep", ["window", "all"])
@pytest.mark.parametrize("threshold", [0, 0.05])
def test_a_saved_session_goes_on_with_the_same_regions(predictor, clip, tmp_path, keep, threshold):
    predictor.skip_mad_threshold = threshold
    expected = track(predictor, session(predictor, clip, [1, 2], keep=keep))
    state = session(predictor, clip, [1, 2], keep=keep)
    for t, _, _ in predictor.propagate_in_video(state, progress=False):
        if t == 8:
            break
    predictor.save(state, tmp_path / "session.pt")
    predictor.search_factor = None  # the session's own counts
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    found = track(predictor, loaded, start_frame_idx=9)
    assert list(found) == list(range(9, LENGTH))
    assert all(torch.equal(found[t], expected[t]) for t in found)
    before = [state.track(2).region(t) for t in range(9)]
    assert [loaded.track(2).region(t) for t in range(9)] == before and None not in before


def test_memory_that_was_dropped_is_made_again_where_the_object_was_looked_for(predictor, caplog):
    long = draw_clip(24, HEIGHT, WIDTH, num_objects=1, seed=3)
    answers = {}
    for keep in ("window", "all"):
        state = session(predictor, long, [1], keep=keep)
        track(predictor, state)
        answers[keep] = track(predictor, state, start_frame_idx=12, max_frame_num_to_track=2)
    assert "is made again" in caplog.text
    for t in (12, 13, 14):
        assert overlap(answers["window"][t][0, 0], np.asarray(answers["all"][t][0, 0] > 0)) > 0.95


def test_frames_that_are_skipped_keep_the_region_of_their_key_frame(predictor):
    still = draw_clip(12, HEIGHT, WIDTH, num_objects=1, seed=3, still=range(4, 10))
    predictor.skip_mad_threshold = 0.05
    state = session(predictor, still, [1])
    track(predictor, state)
    known, key, reused = state.track(1), 0, []
    for decision in state.decisions:
        if decision.action == "reused":
            assert known.region(decision.frame) == known.region(key) != Region.whole(state.frame_size)
            reused.append(decision.frame)
        else:
            key = decision.frame
    assert len(reused) >= 4


@pytest.mark.parametrize(("frame_idx", "way"), [(LENGTH - 1, {"reverse": True}), (6, {"direction": "both"})])
def test_tracking_backwards_follows_the_object_too(predictor, clip, frame_idx, way):
    shown = track(predictor, session(predictor, clip, frame_idx=frame_idx), **way)
    assert list(shown)[-1] == (0 if "reverse" in way else LENGTH - 1)
    assert min(overlap(shown[t][0, 0], clip.labels[t] == 1) for t in shown) > 0.6


@pytest.mark.parametrize("reverse", [False, True])
def test_where_nothing_is_known_of_the_frame_before_the_nearest_known_one_counts(predictor, clip, reverse):
    first, at, beyond = (13, 8, 3) if reverse else (0, 5, 10)
    state = predictor.init_state(list(clip.frames))
    for t in (first, beyond):
        predictor.add_new_mask(state, t, 1, clip.labels[t] == 1)
    predictor.propagate_in_video_preflight(state)
    known = state.track(1)
    region = predictor._region_to_search(state, known, FrameRequest(at, LENGTH, reverse=reverse), since=None)
    found = box_of_mask(known.latest_masks(first) > 0, state.frame_size)
    assert region == next_region(known.region(first), found, state.frame_size, 1.25, gap=5)


@pytest.mark.parametrize("store", ["prompted", "propagated", "carried", "faded", "faded_carried"])
def test_the_last_frame_on_which_an_object_is_known_is_found_wherever_that_is_kept(store):
    known = ObjectTrack(**{store: {4: object(), 9: object()}})
    assert [known.last_known(t, False) for t in (4, 5, 7, 10)] == [None, 4, 4, 9]
    assert [known.last_known(t, True) for t in (9, 8, 5, 3)] == [None, 9, 9, 4]


def test_of_the_regions_only_the_last_ones_maps_are_kept(predictor, clip):
    state, region = predictor.init_state(list(clip.frames)), Region(40, 40, 100, 100)
    for t in (0, 5):
        maps = predictor._features(state, t, region)
    assert list(state.cuts) == [(5, region)] and state.cuts[5, region] is maps
    assert copy.deepcopy(state).cuts[5, region] is maps
    state["cached_features"] = {}
    assert not state.cuts
    predictor._features(state, 5, region)
    state.close()
    assert not state.cuts


def test_objects_with_regions_are_never_batched(predictor, clip, monkeypatch):
    alone = track(predictor, session(predictor, clip, [1, 2]))
    monkeypatch.setattr(predictor, "max_batch_objects", 4)
    found = track(predictor, session(predictor, clip, [1, 2]))
    assert all(torch.equal(found[t], alone[t]) for t in alone)


def test_masks_of_one_size_are_kept_where_an_object_is_known_and_where_it_is_not(predictor, clip):
    state = session(predictor, clip, [1])
    predictor.add_new_mask(state, 8, 2, clip.labels[8] == 2)
    sizes = {known_result(state, obj_id, 0).masks.shape[-2:] for obj_id in (1, 2)}
    assert sizes == {(128, 128)} == {state.track(1).masks[0].shape[-2:]}


def test_whole_frames_are_resized_ahead_only_where_something_looks_at_them(predictor, clip):
    state = session(predictor, clip, [1])
    for factor, threshold, wanted in ((1.25, 0, False), (1.25, 0.05, True), (None, 0, True)):
        predictor.search_factor, predictor.skip_mad_threshold = factor, threshold
        state = session(predictor, clip, [1])
        track(predictor, state, max_frame_num_to_track=1)
        assert state.frames.resizes is wanted


@pytest.mark.parametrize("keep", ["window", "all"])
def test_the_regions_of_skipped_and_packed_frames_are_saved(predictor, tmp_path, keep):
    still = draw_clip(30, HEIGHT, WIDTH, num_objects=1, seed=3, still=range(4, 10))
    predictor.skip_mad_threshold = 0.05
    state = session(predictor, still, [1], keep=keep)
    track(predictor, state)
    known = state.track(1)
    assert (known.faded and known.faded_carried) if keep == "window" else known.carried
    predictor.save(state, tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt", list(still.frames)).track(1)
    regions = [known.region(t) for t in range(30)]
    assert [loaded.region(t) for t in range(30)] == regions and None not in regions


@pytest.mark.parametrize("keep", ["window", "all"])
def test_a_session_that_was_saved_before_there_were_regions_is_read(predictor, tmp_path, keep):
    still = draw_clip(30, HEIGHT, WIDTH, num_objects=1, seed=3, still=range(4, 10))
    predictor.search_factor, predictor.skip_mad_threshold = None, 0.05
    state = session(predictor, still, [1], keep=keep)
    expected = track(predictor, state)
    predictor.save(state, tmp_path / "session.pt")
    content = torch.load(tmp_path / "session.pt", weights_only=True)
    content["version"] = 2
    del content["search_factor"]
    for _, stored in content["objects"]:
        for name in ("prompted", "propagated"):
            for output in stored[name].values():
                assert output.pop("region") is None
        stored["carried"] = {t: carried[:-1] for t, carried in stored["carried"].items()}
        stored["faded_carried"]["frames"] = [carried[:-1] for carried in stored["faded_carried"]["frames"]]
        if stored["faded"] is not None:
            del stored["faded"]["regions"]
    torch.save(content, tmp_path / "older.pt")
    shown = [predictor.load(tmp_path / name, list(still.frames)) for name in ("session.pt", "older.pt")]
    assert shown[1].search_factor is None
    again = [track(predictor, each, start_frame_idx=1) for each in shown]
    assert all(torch.equal(again[0][t], again[1][t]) for t in again[0]) and len(again[0]) == len(expected) - 1


# Prompts


def prompts_of(clip, obj_id):
    rows, columns = np.nonzero(clip.labels[0] == obj_id)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return box, [[float(np.median(columns)), float(np.median(rows))]]


def test_a_click_is_answered_as_by_sam_2_and_remembered_near_the_object(predictor, clip):
    _, click = prompts_of(clip, 1)
    state = predictor.init_state(list(clip.frames))
    _, _, near = predictor.add_new_points_or_box(state, 0, 1, points=click, labels=[1])
    predictor.search_factor = None
    everywhere = predictor.init_state(list(clip.frames))
    _, _, far = predictor.add_new_points_or_box(everywhere, 0, 1, points=click, labels=[1])
    assert overlap(near[0, 0], np.asarray(far[0, 0] > 0)) > 0.97
    region = state.track(1).pending_prompted[0].region
    found = box_of_mask(near > 0, state.frame_size)
    assert region == pytest.approx(region_around(found, state.frame_size, 1.25), abs=4)


def test_a_click_beside_its_box_is_looked_at_too(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    seen = predictor._first_look(
        state,
        FrameRequest(0, 1, points=PointInputs(
            torch.tensor([[[2.0, 2.0], [10.0, 10.0], [120.0, 60.0]]]), torch.tensor([[2, 3, 1]], dtype=torch.int32),
        )),
        factor=1.25,
    )  # fmt: skip
    assert seen.left + seen.width >= 120 / 128 * WIDTH


@pytest.mark.parametrize("with_click", [False, True])
def test_a_box_is_answered_from_its_surroundings_and_remembered_near_the_object(
    predictor, clip, with_click, monkeypatch
):
    box, click = prompts_of(clip, 1)
    looked = []
    track_object = type(predictor)._track_object
    monkeypatch.setattr(
        type(predictor), "_track_object",
        lambda self, state, track, request, region, remember: looked.append((region, request))
        or track_object(self, state, track, request, region, remember),
    )  # fmt: skip
    state = predictor.init_state(list(clip.frames))
    clicks = {"points": click, "labels": [1]} if with_click else {}
    _, _, logits = predictor.add_new_points_or_box(state, 0, 1, box=box, **clicks)
    (first, asked), (near, _) = looked
    assert first == pytest.approx(region_around(Box(*map(float, box)), state.frame_size, 3.0), abs=1)
    corners = (np.array(box).reshape(2, 2) - first[:2]) * 128 / first[2:]
    np.testing.assert_allclose(asked.points.point_coords[0, :2], corners, atol=1)
    assert asked.points.point_labels.tolist() == [[2, 3, 1] if with_click else [2, 3]]
    found = box_of_mask(logits > 0, state.frame_size)
    assert near == pytest.approx(region_around(found, state.frame_size, 1.25), abs=4)
    assert state.track(1).pending_prompted[0].region == near
    assert overlap(logits[0, 0], clip.labels[0] == 1) > 0.7


def test_the_pointer_of_a_click_is_that_of_what_it_found_in_its_region(predictor, clip):
    _, click = prompts_of(clip, 1)
    state, other = (predictor.init_state(list(clip.frames)) for _ in range(2))
    _, _, logits = predictor.add_new_points_or_box(state, 0, 1, points=click, labels=[1])
    predictor.add_new_mask(other, 0, 1, np.asarray(logits[0, 0] > 0))
    clicked, masked = (each.track(1).pending_prompted[0] for each in (state, other))
    assert clicked.region == masked.region
    torch.testing.assert_close(clicked.obj_ptr, masked.obj_ptr, rtol=0, atol=1e-4)


def test_a_box_is_answered_from_its_region_where_the_factor_is_larger_than_that_of_boxes(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    points = PointInputs(torch.tensor([[[40.0, 40], [56, 56]]]), torch.tensor([[2, 3]], dtype=torch.int32))
    box = Box(100, 75, 140, 105)
    assert box_of_points(points, state.frame_size, 128) == box
    looked = predictor._first_look(state, FrameRequest(0, 1, points=points), factor=4.0)
    assert looked == region_around(box, state.frame_size, 4)


def test_what_a_click_refines_is_cut_to_the_region(predictor, clip):
    state, region = predictor.init_state(list(clip.frames)), Region(40, 40, 100, 100)
    logits = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    seen = predictor._seen(state, FrameRequest(0, 1, previous_logits=logits), region).previous_logits
    torch.testing.assert_close(seen, logits_in_region(logits, region, state.frame_size, 128))


def test_a_click_refines_a_line_alike_wherever_it_lies(predictor):
    """A line two pixels wide is as strong in what the decoder gets at any place within the decoder's own pixels."""
    got = []
    hook = predictor.sam_prompt_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: got.append(kwargs["masks"]), with_kwargs=True
    )
    with hook:
        for left in range(60, 64):
            mask = np.zeros((128, 128), bool)
            mask[20:100, left : left + 2] = True
            state = predictor.init_state([np.zeros((128, 128, 3), np.uint8)])
            predictor.add_new_mask(state, 0, 1, mask)
            got.clear()
            predictor.add_new_points_or_box(state, 0, 1, points=[[62, 60]], labels=[1])
            (refined,) = (masks for masks in got if masks is not None and (masks < 0).any())
            assert refined.shape[-2:] == (32, 32)
            assert (refined[0, 0, 15] + 10).sum() == pytest.approx(20 * 2 / 4, rel=0.02)


def test_a_correction_by_a_mask_is_shown_and_remembered_as_given(predictor, clip):
    state = session(predictor, clip, [1])
    track(predictor, state)
    mask = clip.labels[6] == 2  # another object: nothing that tracking may have found by itself
    _, _, logits = predictor.add_new_mask(state, 6, 1, mask)
    assert overlap(logits[0, 0], mask) > 0.95
    pending = state.track(1).pending_propagated[6]
    cut = torch.from_numpy(mask[pending.region.rows, pending.region.columns]).float()[None, None]
    assert torch.equal(pending.given, resize_mask(cut, (128, 128)) > 0)


def test_a_mask_of_the_networks_size_is_shown_and_remembered_as_given(predictor, clip):
    mask = np.zeros((128, 128), bool)
    mask[30:60, 70:110] = True
    state = predictor.init_state(list(clip.frames))
    _, _, logits = predictor.add_new_mask(state, 0, 1, mask)
    whole = resize_mask(torch.from_numpy(mask).float()[None, None], (HEIGHT, WIDTH))
    assert overlap(logits[0, 0], whole[0, 0].numpy() > 0) > 0.95
    pending = state.track(1).pending_prompted[0]
    inside = logits_in_region(whole * 20 - 10, pending.region, state.frame_size, 128) > 0
    assert overlap(pending.given, inside.numpy()) > 0.95


def test_a_correction_of_a_skipped_frame_has_a_region_of_its_own(predictor):
    still = draw_clip(12, HEIGHT, WIDTH, num_objects=1, seed=3, still=range(4, 10))
    predictor.skip_mad_threshold = 0.05
    state = session(predictor, still, [1])
    track(predictor, state)
    t = next(decision.frame for decision in state.decisions if decision.action == "reused")
    before = state.track(1).region(t)
    predictor.add_new_points_or_box(state, t, 1, points=[[before.left - 30, before.top + 5]], labels=[1])
    assert state.track(1).region(t) == state.track(1).pending_propagated[t].region != before


def test_a_click_refines_what_the_one_before_found(predictor, clip):
    _, click = prompts_of(clip, 1)
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_points_or_box(state, 0, 1, points=click, labels=[1])
    once = state.track(1).pending_prompted[0]
    predictor.add_new_points_or_box(state, 0, 1, points=[[5, 5]], labels=[0], clear_old_points=False)
    twice = state.track(1).pending_prompted[0]
    assert overlap(twice.pred_masks[0, 0], np.asarray(once.pred_masks[0, 0] > 0)) > 0.7
    assert not torch.equal(once.pred_masks, twice.pred_masks)


def test_a_correction_on_a_tracked_frame_is_answered_near_the_object(predictor, clip):
    state = session(predictor, clip, [1], keep="all")
    shown = track(predictor, state)[6][0, 0]
    before = box_of_mask(shown[None, None] > 0, state.frame_size)
    _, _, corrected = predictor.add_new_points_or_box(state, 6, 1, points=[[5, 5]], labels=[0])
    region = state.track(1).pending_propagated[6].region
    assert region == pytest.approx(region_around(before, state.frame_size, 1.25), abs=4)
    assert overlap(corrected[0, 0], np.asarray(shown > 0)) > 0.8
    x, y = before.right + 20, before.top
    predictor.add_new_points_or_box(state, 6, 1, points=[[x, y]], labels=[1])
    region = state.track(1).pending_propagated[6].region
    assert region.left + region.width > x and region.width > 1.2 * (x - before.left)


def test_an_empty_mask_is_looked_for_everywhere(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, 0, 1, np.zeros((HEIGHT, WIDTH), bool))
    assert state.track(1).pending_prompted[0].region == Region.whole(state.frame_size)
    assert all((logits <= 0).all() for logits in track(predictor, state, max_frame_num_to_track=2).values())


def test_a_mask_of_which_nothing_is_kept_is_warned_about(predictor, clip, caplog):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[100:106, 100:106] = True
    _, _, logits = predictor.add_new_mask(predictor.init_state(list(clip.frames)), 0, 1, mask)
    assert (logits > 0).any() and "is empty" not in caplog.text
    mask[101:106] = mask[:, 101:106] = False  # one pixel: enough for the network's input, not for what is kept
    _, _, logits = predictor.add_new_mask(predictor.init_state(list(clip.frames)), 0, 1, mask)
    assert not (logits > 0).any() and "is empty once it is reduced" in caplog.text
    assert "it is remembered, but not shown" in caplog.text and "absent" not in caplog.text


@pytest.mark.parametrize("factor", [0.9, 0, -1, math.inf, math.nan, "2", True])
def test_a_factor_that_is_none_is_refused(predictor, factor):
    with pytest.raises(ValueError, match="search_factor must be a number of 1 or more, or None, got"):
        predictor.search_factor = factor
    with pytest.raises(ValueError, match="search_factor must be a number of 1 or more, or None, got"):
        build(search_factor=factor)
    assert predictor.search_factor == 1.25


def test_the_builder_takes_the_factor(predictor):
    predictor.search_factor = np.float32(1.5)
    assert type(predictor.search_factor) is float
    assert build(image_size=128, search_factor=2).search_factor == 2
    assert build(image_size=128).search_factor is None

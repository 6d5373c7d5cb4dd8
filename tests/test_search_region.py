"""Search regions: where they lie, how they change, what goes into them and comes back; and tracking with them."""

import math

import numpy as np
import pytest
import torch

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.modeling.outputs import FrameRequest, PointInputs
from sam2.search_region import (
    Box,
    Region,
    Size,
    box_of_mask,
    box_of_points,
    logits_in_frame,
    logits_in_region,
    mask_in_region,
    next_region,
    points_in_region,
    region_around,
)
from sam2.utils.drawn_clips import draw_clip

FRAME = Size(480, 854)


def centre(region):
    return region.left + region.width / 2, region.top + region.height / 2


# Where to look


def test_a_region_is_a_square_around_the_object_so_many_times_its_longer_side():
    region = region_around(Box(400, 200, 500, 280), FRAME, 2.0)
    assert region == Region(350, 140, 200, 200)


def test_a_region_is_never_smaller_than_a_quarter_of_the_frame():
    assert region_around(Box(400, 200, 404, 202), FRAME, 2.0) == Region(342, 141, 120, 120)


@pytest.mark.parametrize("box", [Box(0, 0, 90, 90), Box(764, 390, 854, 480), Box(0, 390, 40, 480)])
def test_a_region_at_the_edge_keeps_its_size_and_stays_inside(box):
    region = region_around(box, FRAME, 2.0)
    assert (region.width, region.height) == (180, 180)
    assert 0 <= region.left <= 854 - 180 and 0 <= region.top <= 480 - 180
    assert region.left <= box.left and box.right <= region.left + 180


def test_a_region_larger_than_the_frame_is_cut_to_it():
    assert region_around(Box(100, 0, 600, 470), FRAME, 1.2) == Region(50, 0, 600, 480)
    assert region_around(Box(0, 0, 850, 470), FRAME, 1.2) == Region.whole(FRAME)


def test_the_region_follows_the_object_and_keeps_its_size_while_that_is_about_right():
    last = Region(350, 140, 200, 200)
    region = next_region(last, Box(430, 220, 540, 300), FRAME, 2.0)
    assert (region.width, region.height) == (200, 200)
    assert centre(region) == (485, 260)


def test_the_size_changes_slowly_but_covers_the_object_at_once():
    last = Region(350, 140, 200, 200)
    shrinking = next_region(last, Box(440, 230, 480, 270), FRAME, 2.0)
    assert shrinking.width == round(200 * (120 / 200) ** 0.3)
    growing = next_region(last, Box(400, 200, 700, 280), FRAME, 2.0)
    assert growing.width == round(1.15 * 300)


def test_an_object_that_fills_its_region_can_grow_whatever_the_factor():
    region = region_around(Box(350, 140, 550, 340), FRAME, 1.0)
    assert region == Region(335, 125, 230, 230)
    for width in (230, 264, 304):
        box = Box(region.left, region.top, region.left + region.width, region.top + region.height)
        assert box.longer_side == width
        region = next_region(region, box, FRAME, 1.0)


def test_a_region_without_the_object_grows_to_the_whole_frame():
    region, widths = Region(100, 100, 150, 150), []
    for _ in range(20):
        region = next_region(region, None, FRAME, 2.0)
        widths.append(region.width)
    assert widths[0] == round(150 * 1.15) and widths == sorted(widths)
    assert region == Region.whole(FRAME)


def test_the_region_is_the_larger_the_longer_ago_the_object_was_seen():
    last, box = Region(350, 140, 200, 200), Box(400, 200, 500, 280)
    widths = [next_region(last, box, FRAME, 2.0, gap=gap).width for gap in (1, 2, 4)]
    assert widths == [200, round(200 * 1.05), round(200 * 1.05**3)]
    assert next_region(last, None, FRAME, 2.0, gap=3).width == round(200 * 1.15**3)
    for found in (box, None):
        assert next_region(last, found, FRAME, 2.0, gap=1_000_000) == Region.whole(FRAME)


# Into the region and back


def test_the_box_of_a_mask_is_in_pixels_of_the_frame():
    mask = torch.zeros(1, 1, 48, 61, dtype=torch.bool)
    assert box_of_mask(mask, FRAME) is None
    mask[0, 0, 10:20, 30:33] = True
    assert box_of_mask(mask, FRAME) == pytest.approx((30 * 14, 100, 33 * 14, 200))


def test_points_are_moved_into_the_region_and_far_ones_beside_the_object_left_out():
    coords = torch.tensor([[[64.0, 32.0], [40.0, 64.0], [100.0, 10.0], [5.0, 100.0]]])
    points = PointInputs(coords, torch.tensor([[1, 0, 1, 0]], dtype=torch.int32))
    frame, region = Size(128, 256), Region(64, 32, 96, 64)
    assert box_of_points(points, frame, side=128) == (128, 10, 200, 32)
    moved = points_in_region(points, region, frame, side=128)
    wanted = torch.tensor([[[64 / 96, 0.0], [16 / 96, 32 / 64], [136 / 96, -22 / 64]]]) * 128
    torch.testing.assert_close(moved.point_coords[:, :3], wanted)
    assert moved.point_labels.tolist() == [[1, 0, 1, -1]]
    assert box_of_points(PointInputs(coords, torch.zeros(1, 4, dtype=torch.int32)), frame, side=128) is None


@pytest.mark.parametrize("size", [(128, 256), (64, 64)])
def test_a_mask_prompt_is_cut_in_the_frames_own_pixels(size):
    frame, region = Size(128, 256), Region(64, 32, 96, 64)
    height, width = size
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1  # (32..64, 64..128) of the frame
    cut = mask_in_region(mask, region, frame) >= 0.5
    wanted = torch.zeros(64, 96, dtype=torch.bool)
    wanted[:32, :64] = True
    assert (cut[0, 0] != wanted).sum() <= 4  # corners of an enlarged mask are round


def smooth_logits(frame, side):
    """A soft disc of the frame, as logits at side x side."""
    y = (torch.arange(side) + 0.5) / side * frame.height
    x = (torch.arange(side) + 0.5) / side * frame.width
    return soft_disc(x, y)[None, None]


def soft_disc(x, y):
    return 8 * torch.exp(-(((x[None] - 110) / 30) ** 2) - ((y[:, None] - 60) / 30) ** 2) - 4


def test_logits_are_cut_out_of_the_frame_where_the_region_is():
    frame, region = Size(128, 256), Region(64, 16, 96, 80)
    cut = logits_in_region(smooth_logits(frame, 128), region, frame, side=64)
    y = region.top + (torch.arange(64) + 0.5) / 64 * region.height
    x = region.left + (torch.arange(64) + 0.5) / 64 * region.width
    assert (cut[0, 0] - soft_disc(x, y)).abs().max() < 0.1


def test_logits_of_a_region_are_put_back_where_it_is_and_nothing_is_claimed_around_it():
    frame, region = Size(128, 256), Region(64, 16, 96, 80)
    whole = smooth_logits(frame, 128)
    placed = logits_in_frame(logits_in_region(whole, region, frame, side=64), region, frame, side=128)
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[16:96, 32:80] = True
    assert (placed - whole)[0, 0][inside].abs().max() < 0.1
    assert (placed[0, 0][~inside] == -10).all()


def test_the_whole_frame_as_a_region_is_the_frame_itself():
    frame = Size(128, 256)
    logits = smooth_logits(frame, 64)
    for move in (logits_in_region, logits_in_frame):
        torch.testing.assert_close(move(logits, Region.whole(frame), frame, side=64), logits, rtol=0, atol=1e-4)


# Tracking

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


def session(predictor, clip, obj_ids=(1, 2), **options):
    state = predictor.init_state(list(clip.frames), **options)
    for obj_id in obj_ids:
        predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
    return state


def track(predictor, state, **options):
    return {t: logits for t, _, logits in predictor.propagate_in_video(state, progress=False, **options)}


def overlap(logits, mask):
    found = np.asarray(logits > 0)
    return (found & mask).sum() / (found | mask).sum()


def mean_overlap(shown, clip, index, obj_id):
    return np.mean([overlap(shown[t][index, 0], clip.labels[t] == obj_id) for t in range(1, LENGTH)])


def test_small_objects_are_found_better_than_in_the_whole_frame(predictor, clip):
    near = track(predictor, session(predictor, clip))
    predictor.search_factor = None
    far = track(predictor, session(predictor, clip))
    gains = [mean_overlap(near, clip, i, i + 1) - mean_overlap(far, clip, i, i + 1) for i in (0, 1)]
    assert min(gains) > 0.05, gains


def test_each_object_has_a_region_of_its_own_that_follows_it(predictor, clip):
    state = session(predictor, clip)
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


def test_the_factor_of_a_session_stays_what_it_was_when_it_was_opened(predictor, clip):
    expected = track(predictor, session(predictor, clip, [1]))
    state = session(predictor, clip, [1])
    predictor.search_factor = None
    found = track(predictor, state)
    assert all(torch.equal(found[t], expected[t]) for t in expected)


def test_an_objects_masks_are_the_same_whatever_the_others_are(predictor, clip):
    both, alone = track(predictor, session(predictor, clip)), track(predictor, session(predictor, clip, [2]))
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
    expected = track(predictor, session(predictor, clip, keep=keep))
    state = session(predictor, clip, keep=keep)
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
    known, key = state.track(1), 0
    for decision in state.decisions:
        if decision.action == "reused":
            assert known.region(decision.frame) == known.region(key) != Region.whole(state.frame_size)
        else:
            key = decision.frame
    assert key < state.decisions[-1].frame or any(d.action == "reused" for d in state.decisions)


def test_tracking_backwards_follows_the_object_too(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    predictor.add_new_mask(state, LENGTH - 1, 1, clip.labels[-1] == 1)
    shown = track(predictor, state, reverse=True)
    assert min(overlap(shown[t][0, 0], clip.labels[t] == 1) for t in shown) > 0.6


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
    mask[100:104, 100:104] = True
    _, _, logits = predictor.add_new_mask(predictor.init_state(list(clip.frames)), 0, 1, mask)
    assert (logits > 0).any() and "is empty" not in caplog.text
    mask[101:104] = mask[:, 101:104] = False
    _, _, logits = predictor.add_new_mask(predictor.init_state(list(clip.frames)), 0, 1, mask)
    assert not (logits > 0).any() and "is empty once it is reduced" in caplog.text


@pytest.mark.parametrize("factor", [0.9, 0, -1, math.inf, math.nan, "2", True])
def test_a_factor_that_is_none_is_refused(predictor, factor):
    with pytest.raises(ValueError, match="search_factor must be a number of 1 or more, or None, got"):
        predictor.search_factor = factor
    with pytest.raises(ValueError, match="search_factor must be a number of 1 or more, or None, got"):
        build(search_factor=factor)
    assert predictor.search_factor == 1.25


def test_the_builder_takes_the_factor():
    assert build(image_size=128, search_factor=2).search_factor == 2
    assert build(image_size=128).search_factor is None

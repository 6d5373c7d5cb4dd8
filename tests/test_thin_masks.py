"""Given masks that are remembered as they are: in whole frames those whose answer, at a quarter of the size that the
network sees, shows too little to be remembered by; in search regions all, which are shown as they are, too."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sessions import session, track

from sam2 import video_tracking
from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.modeling.search_region import logits_in_region
from sam2.utils.drawn_clips import draw_clip
from sam2.utils.prompts import resize_mask
from sam2.video_tracking import resize_masks, shown_as_given

HEIGHT, WIDTH, LENGTH = 480, 854, 6


@pytest.fixture(scope="module")
def ropes():
    """Three dark ropes two pixels wide that move to the right before a bright sky."""
    rng = np.random.default_rng(0)
    sky = cv2.GaussianBlur(rng.normal(190, 60, (HEIGHT, WIDTH, 3)), (0, 0), 6).clip(0, 255).astype(np.uint8)
    frames, labels = [], []
    for t in range(LENGTH):
        frame, label = sky.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        for end in (250, 400, 560):
            start, stop = (400 + 3 * t, 430), (end + 3 * t, 40)
            cv2.line(label, start, stop, 1, 2)
            cv2.line(frame, start, stop, (40, 30, 30), 2, cv2.LINE_AA)
        frames.append(frame)
        labels.append(label)
    return SimpleNamespace(frames=frames, labels=labels)


@pytest.fixture(scope="module")
def model():
    return build_sam2_video_predictor(device="cpu")


@pytest.fixture
def predictor(model):
    model.skipping = SkipOptions(0)
    yield model
    model.skipping, model.search_factor = SkipOptions(), None


def remembered(predictor, state, masks, region=None):
    """The memory map of an object of these masks, logits at the network's input size, on the first frame."""
    with torch.inference_mode(), predictor.autocast():
        features = predictor._features(state, 0, region)
        return predictor.write_memory(features, masks, torch.full((1, 1), 10.0), from_points=True).features


def near(found, wanted, pixels=7):
    """Share of what was found that lies near what was wanted, and the other way round."""
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    found, wanted = found.astype(np.uint8), wanted.astype(np.uint8)
    return (
        (found & cv2.dilate(wanted, kernel)).sum() / max(found.sum(), 1),
        (wanted & cv2.dilate(found, kernel)).sum() / wanted.sum(),
    )


def test_ropes_are_followed_which_are_lost_if_they_are_remembered_as_their_answer_shows_them(
    predictor, ropes, monkeypatch
):
    shown = track(predictor, session(predictor, ropes))
    monkeypatch.setattr(video_tracking, "LEAST_SHOWN", 0.0)
    lost = track(predictor, session(predictor, ropes))
    for t in (1, 3, 5):
        right, complete = near(shown[t][0, 0].numpy() > 0, ropes.labels[t] == 1)
        assert right > 0.9 and complete > 0.9
        assert near(lost[t][0, 0].numpy() > 0, ropes.labels[t] == 1)[1] < 0.2


def test_memory_has_a_thin_mask_as_given_and_any_other_as_its_answer_shows_it(predictor, ropes):
    side = (predictor.image_size, predictor.image_size)
    thick = [cv2.dilate(label, np.ones((25, 25), np.uint8)) for label in ropes.labels]
    for clip, is_thin in ((ropes, True), (SimpleNamespace(frames=ropes.frames, labels=thick), False)):
        state = session(predictor, clip)
        pending = state.objects[1].pending_prompted[0]
        given = resize_mask(torch.from_numpy(clip.labels[0]).float()[None, None], side) >= 0.5
        assert (pending.given is not None) == is_thin
        exact, answered = given.float() * 20 - 10, resize_masks(pending.pred_masks, side)
        next(iter(predictor.propagate_in_video(state, progress=False)))
        memory = state.objects[1].prompted[0]
        assert memory.given is None  # it is not kept any longer
        expected = remembered(predictor, state, exact if is_thin else answered)
        torch.testing.assert_close(memory.maskmem_features.float(), expected.to(memory.maskmem_features).float())
        other = remembered(predictor, state, answered if is_thin else exact)
        assert not torch.allclose(memory.maskmem_features.float(), other.float(), atol=1e-2)


def test_in_a_region_ropes_are_shown_as_given_and_followed(predictor, ropes):
    predictor.search_factor = 1.25
    shown = track(predictor, session(predictor, ropes))
    given, first = ropes.labels[0] == 1, shown[0][0, 0].numpy() > 0
    assert (given & first).sum() > 0.75 * (given | first).sum()
    for t in (1, 3, 5):
        right, complete = near(shown[t][0, 0].numpy() > 0, ropes.labels[t] == 1)
        assert right > 0.9 and complete > 0.9


def test_in_a_region_memory_has_every_mask_as_given(predictor, ropes):
    predictor.search_factor, side = 1.25, predictor.image_size
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(label, (300, 200), 40, 1, -1)
    clip = SimpleNamespace(frames=ropes.frames, labels=[label])
    state = session(predictor, clip)
    next(iter(predictor.propagate_in_video(state, progress=False)))
    memory = state.objects[1].prompted[0]
    assert memory.given is None  # it is not kept any longer
    cut = torch.from_numpy(label[memory.region.rows, memory.region.columns]).float()[None, None]
    exact = resize_mask(cut, (side, side)) * 20 - 10
    expected = remembered(predictor, state, exact, memory.region)
    torch.testing.assert_close(memory.maskmem_features.float(), expected.to(memory.maskmem_features).float())
    answered = logits_in_region(memory.pred_masks, memory.region, state.frame_size, side)
    other = remembered(predictor, state, answered, memory.region)
    assert not torch.allclose(memory.maskmem_features.float(), other.float(), atol=1e-2)


@pytest.mark.parametrize("left", [100, 101])
def test_a_line_is_shown_wherever_it_lies_on_the_networks_pixels(left):
    line = torch.zeros(1, 1, 8, 704)
    line[..., left : left + 2] = 1  # on a frame twice as wide as the network's input: half of two pixels, or all of one
    shown = F.interpolate(shown_as_given(line, 352), line.shape[-2:], mode="bilinear", align_corners=False) > 0
    assert torch.equal(shown, line > 0)


def test_shares_above_one_count_as_one():
    assert shown_as_given(torch.full((1, 1, 4, 4), 255.0), 4).max() < 11


@pytest.mark.parametrize("factor", [None, 1.25])
def test_a_session_saved_before_it_was_remembered_goes_on_with_it(predictor, ropes, tmp_path, factor):
    predictor.search_factor = factor
    whole = track(predictor, session(predictor, ropes))
    predictor.save(session(predictor, ropes), tmp_path / "session.pt")
    loaded = track(predictor, predictor.load(tmp_path / "session.pt", ropes.frames))
    assert all(torch.equal(loaded[t], whole[t]) for t in range(LENGTH))


@pytest.mark.parametrize("factor", [None, 1.25])
def test_an_answer_that_is_set_by_hand_is_remembered_as_it_is(predictor, ropes, factor):
    predictor.search_factor, side = factor, predictor.image_size
    state = session(predictor, ropes)
    pending = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][0]
    pending["pred_masks"] = edited = torch.where(pending["pred_masks"] > -9, 10.0, -10.0)
    next(iter(predictor.propagate_in_video(state, progress=False)))
    output = state.objects[1].prompted[0]
    memory, region = output.maskmem_features, output.region
    masks = edited if region is None else logits_in_region(edited, region, state.frame_size, side)
    expected = remembered(predictor, state, resize_masks(masks, (side, side)), region)
    torch.testing.assert_close(memory, expected.to(memory))


def test_a_write_that_failed_is_made_up_for(predictor, ropes, monkeypatch):
    whole = track(predictor, session(predictor, ropes))
    state = session(predictor, ropes)
    with monkeypatch.context() as broken:
        broken.setattr(predictor, "write_memory", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            track(predictor, state)
    again = track(predictor, state)
    assert all(torch.equal(again[t], whole[t]) for t in range(LENGTH))


def test_a_subclass_that_answers_masks_by_itself_is_believed(ropes):
    class Mine(type(build_sam2_video_predictor(device="cpu"))):
        def _use_mask_as_output(self, *args):
            return super()._use_mask_as_output(*args)

    predictor = build_sam2_video_predictor(device="cpu")
    predictor.__class__ = Mine
    assert predictor.has_own_steps
    assert session(predictor, ropes).objects[1].pending_prompted[0].given is None


def test_an_empty_mask_and_a_drawn_object_are_remembered_as_ever(predictor):
    clip = draw_clip(2, 240, 320, num_objects=2, seed=3)
    state = session(predictor, clip, obj_ids=(1, 2))
    predictor.add_new_mask(state, 0, 3, np.zeros((240, 320)))
    assert [track.pending_prompted[0].given for track in state.objects.values()] == [None] * 3

"""Live streams: the same answers as for a file, prompts at any time, bounded memory, clear refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.utils.drawn_clips import draw_clip

HEIGHT, WIDTH, LENGTH = 96, 128, 20
GATES = {
    "off": SkipOptions(0),
    "naive": SkipOptions(0.01),
    "mask_aware": SkipOptions(0.05, "mask_aware", "flow"),
    "memory_guided": SkipOptions(0.3, "memory_guided", max_consecutive_skips=3),
}


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3, still=range(12, 16))


@pytest.fixture(scope="module")
def model():
    return build_sam2_video_predictor(device="cpu", hydra_overrides_extra=["++model.image_size=128"])


@pytest.fixture
def predictor(model):
    model.skipping = GATES["off"]
    yield model
    model.skipping = SkipOptions()
    model.max_cond_frames_in_attn = -1


def masks_of(result):
    return {each.obj_id: each.mask for each in result.objects}


@pytest.mark.parametrize("gate", GATES)
def test_a_stream_answers_as_propagation_through_the_same_frames(predictor, clip, gate):
    predictor.skipping = GATES[gate]

    def edit(t, session):
        if t == 3:
            session(2, mask=clip.labels[3] == 2)
        if t == 8:
            session(1, points=[[5, 5]], labels=[0])

    state = predictor.init_state(list(clip.frames), keep="all")
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)

    def prompt_offline(t):
        def prompt(obj_id, mask=None, points=None, labels=None):
            if mask is not None:
                return predictor.add_new_mask(state, t, obj_id, mask)
            return predictor.add_new_points_or_box(state, t, obj_id, points, labels)

        return prompt

    offline, logits = [], []
    for result in predictor.propagate_results(state, progress=False):
        offline.append(result)
        logits.append({obj_id: track.latest_masks(result.frame).clone() for obj_id, track in state.objects.items()})
        edit(result.frame, prompt_offline(result.frame))

    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        for t, frame in enumerate(clip.frames):
            result = stream.step(frame)
            assert result.decision[:4] == offline[t].decision[:4]
            for obj_id, track in stream.state.objects.items():
                assert torch.equal(track.latest_masks(t), logits[t][obj_id])
            for found, wanted in zip(result.objects, offline[t].objects, strict=True):
                np.testing.assert_array_equal(found.mask, wanted.mask)
                assert (found.obj_id, found.status, found.box) == (wanted.obj_id, wanted.status, wanted.box)
                assert (found.object_score, found.predicted_iou) == (wanted.object_score, wanted.predicted_iou)
            edit(t, stream.prompt)
    if gate != "off":
        assert any(each.decision.action in ("reused", "warped") for each in offline)


@pytest.mark.parametrize("kind", ["bgr array", "rgb tensor", "channels first", "floats", "PIL"])
def test_frames_of_any_kind_mean_the_same(predictor, clip, kind):
    def given(frame):
        return {
            "bgr array": lambda: frame[..., ::-1],
            "rgb tensor": lambda: torch.from_numpy(frame),
            "channels first": lambda: torch.from_numpy(frame).permute(2, 0, 1),
            "floats": lambda: frame.astype(np.float32) / 255,
            "PIL": lambda: Image.fromarray(frame),
        }[kind]()

    with predictor.stream(color="bgr" if kind == "bgr array" else None if kind == "PIL" else "rgb") as stream:
        stream.step(given(clip.frames[0]))
        np.testing.assert_array_equal(stream.state.frames.frame(0), clip.frames[0])


def test_a_camera_may_write_the_next_frame_into_the_same_buffer(predictor, clip):
    predictor.skipping = GATES["naive"]
    buffer = np.empty_like(clip.frames[0])
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        for frame in clip.frames[:2]:
            buffer[...] = frame
            result = stream.step(buffer)
    assert result.decision.action == "processed" and result.decision.change > 0.01


def test_a_prompt_is_about_the_frame_the_user_saw_last(predictor, clip):
    state = predictor.init_state(list(clip.frames))
    answer = (predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)[2] > 0)[0, 0].numpy()
    with predictor.stream(color="rgb") as stream:
        assert stream.step(clip.frames[0]).objects == ()
        shown = stream.prompt(1, mask=clip.labels[0] == 1)
        assert (shown.frame, shown[1].status) == (0, "prompted")
        np.testing.assert_array_equal(shown[1].mask, answer)
        assert stream.step(clip.frames[1])[1].status == "tracked"
        assert list(stream.state.track(1).prompted) == [0]


def test_a_prompt_on_the_next_frame_waits_for_it(predictor, clip):
    with predictor.stream(color="rgb") as stream:
        stream.step(clip.frames[0])
        assert stream.prompt(1, mask=clip.labels[1] == 1, on="next") is None
        result = stream.step(clip.frames[1])
        assert (result.decision.action, result[1].status) == ("prompted", "prompted")
        assert list(stream.state.track(1).prompted) == [1]


def test_objects_can_be_removed_and_all_may_be_gone_for_a_while(predictor, clip):
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        stream.step(clip.frames[0])
        stream.remove(1)
        assert stream.step(clip.frames[1]).objects == ()
        assert (stream.obj_ids, stream.frame_idx) == ([], 1)
        stream.prompt(7, mask=clip.labels[1] == 2)
        assert stream.step(clip.frames[2]).obj_ids == [7]
        with pytest.raises(RuntimeError, match="obj_id 1 is not in this session"):
            stream.remove(1)


def test_a_stream_goes_on_without_an_object_whose_prompt_is_taken_back(predictor, clip):
    with predictor.stream(color="rgb") as stream:
        stream.step(clip.frames[0])
        stream.prompt(1, mask=clip.labels[0] == 1)
        predictor.clear_all_prompts_in_frame(stream.state, 0, 1)
        assert len(stream.step(clip.frames[1])) == 0
        stream.prompt(1, mask=clip.labels[1] == 1)
        assert stream.step(clip.frames[2])[1].status == "tracked"


def test_what_a_stream_keeps_does_not_grow(predictor, clip):
    predictor.skipping, predictor.max_cond_frames_in_attn = GATES["naive"], 2

    def kept(stream):
        track = stream.state.track(1)
        stores = [store for store in vars(track).values() if isinstance(store, dict)]
        return [len(store) for store in (*stores, stream.state.decision_of)]

    with predictor.stream(color="rgb", corrections="sticky") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        sizes = []
        for t in range(120):
            stream.step(clip.frames[t % LENGTH])
            if t % LENGTH == LENGTH - 1:
                stream.prompt(1, mask=clip.labels[t % LENGTH] == 1)
            if t % LENGTH == 0:
                sizes.append(kept(stream))
    assert sizes[-1] == sizes[-2] == sizes[-3]
    assert sizes[-1][2] == 2, "prompted frames beyond what memory attention reads are forgotten too"


def test_a_failure_on_one_frame_does_not_end_the_stream(predictor, clip, monkeypatch):
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        stream.step(clip.frames[0])
        with monkeypatch.context() as patch:
            patch.setattr(predictor, "encode_image", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                stream.step(clip.frames[1])
        assert stream.step(clip.frames[2]).frame == 2


def test_mistakes_are_one_clear_error_each(predictor, clip):
    frame = clip.frames[0]
    with pytest.raises(ValueError, match='color must be "rgb", "bgr" or None'):
        predictor.stream(color="RGB")
    with pytest.raises(ValueError, match="in which order the colours of an array are"):
        predictor.stream().step(frame)
    with predictor.stream(color="rgb") as stream:
        with pytest.raises(TypeError, match="frame 0 must be an array, a tensor or a PIL image, got str"):
            stream.step("frame.jpg")
        with pytest.raises(ValueError, match=r"frame 0 must be \(H, W, 3\)"):
            stream.step(frame[..., 0])
        with pytest.raises(ValueError, match="frame 0 has the mode I;16, not 8 bits: scale it to 8 bits"):
            stream.step(Image.fromarray(np.full((128, 96), 300, np.uint16)))
        stream.step(frame)
        with pytest.raises(ValueError, match="frame 1 is 64x96, expected 128x96"):
            stream.step(frame[:, :64])
        with pytest.raises(ValueError, match="give a mask, or points and a box"):
            stream.prompt(1, mask=clip.labels[0] == 1, box=[0, 0, 9, 9])
        with pytest.raises(ValueError, match='on must be "last" or "next"'):
            stream.prompt(1, box=[0, 0, 9, 9], on="now")
        with pytest.raises(ValueError, match="box must touch the frame"):
            stream.prompt(1, box=[900, 0, 990, 9])
    for use in (lambda: stream.step(frame), lambda: stream.prompt(1, box=[0, 0, 9, 9]), lambda: stream.remove(1)):
        with pytest.raises(ValueError, match="this session is closed"):
            use()
    predictor.skipping = SkipOptions(0.3, "memory_guided", lookahead=4)
    with pytest.raises(ValueError, match="skip_lookahead needs frames that are yet to come"):
        predictor.stream(color="rgb")


def test_prompts_on_the_last_and_on_the_next_frame_both_count(predictor, clip):
    def tracked(corrected):
        with predictor.stream(color="rgb") as stream:
            stream.prompt(1, mask=clip.labels[0] == 1)
            for t in range(2):
                stream.step(clip.frames[t])
            if corrected:
                stream.prompt(1, mask=clip.labels[1] == 2)
            stream.prompt(2, mask=clip.labels[2] == 2, on="next")
            return [stream.step(frame) for frame in clip.frames[2:5]]

    as_it_was, corrected = tracked(False), tracked(True)
    assert [result.frame for result in corrected] == [2, 3, 4]
    assert not np.array_equal(as_it_was[0][1].mask, corrected[0][1].mask)
    assert np.array_equal(as_it_was[2][2].mask, corrected[2][2].mask)  # the other object is none the wiser


def test_refining_a_prompted_frame_that_was_shown_counts_from_the_next_frame_on(predictor, clip):
    def tracked(refined):
        with predictor.stream(color="rgb") as stream:
            stream.prompt(1, mask=clip.labels[0] == 1)
            stream.step(clip.frames[0])
            if refined:
                shown = stream.prompt(1, mask=clip.labels[0] == 2)
                assert np.mean(shown[1].mask == (clip.labels[0] == 2)) > 0.98
            return stream.step(clip.frames[1])[1].mask

    assert not np.array_equal(tracked(False), tracked(True))


def test_an_object_that_is_only_carried_keeps_the_scores_of_its_key_frame(predictor, clip):
    predictor.skipping = SkipOptions(0.05)
    with predictor.stream(color="rgb") as stream:
        stream.prompt(1, mask=clip.labels[0] == 1)
        stream.step(clip.frames[0])
        key = stream.step(clip.frames[4] // 2)
        for _ in range(20):  # the key frame's own output is forgotten meanwhile
            last = stream.step(clip.frames[4] // 2)
        assert (key.decision.action, last.decision.action) == ("processed", "reused")
        shown = stream.prompt(2, mask=clip.labels[4] == 2)
    assert (shown[1].status, shown[2].status) == ("reused", "prompted")
    assert shown[1].object_score == pytest.approx(key[1].object_score)
    assert shown[1].predicted_iou == pytest.approx(key[1].predicted_iou)

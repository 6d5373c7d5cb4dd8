"""Sessions of any length and many objects: what is dropped, what is made again, batches, and closing."""

import copy
import gc
import logging
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sessions import session, track
from torch.overrides import TorchFunctionMode

from sam2.build_sam import build_sam2_video_predictor
from sam2.utils.drawn_clips import draw_clip
from sam2.video_memory import FadedOutput

HEIGHT, WIDTH, LENGTH = 96, 128, 26


def build(*overrides, **options):
    small = ["++model.image_size=128", "++model.skip_mad_threshold=0"]
    return build_sam2_video_predictor(device="cpu", hydra_overrides_extra=[*small, *overrides], **options)


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3)


@pytest.fixture(scope="module")
def predictor():
    return build()


def iou(first, second):
    first, second = first > 0, second > 0
    return ((first & second).sum() / (first | second).sum()).item()


# Window


@pytest.mark.parametrize("stride", [1, 3])
def test_window_and_all_give_the_same_masks_where_no_correction_reaches_back(clip, stride):
    predictor = build(f"++model.memory_temporal_stride_for_eval={stride}")

    def run(keep):
        state = session(predictor, clip, keep=keep, frame_idx=12)
        answers = [*track(predictor, state).values(), *track(predictor, state, reverse=True).values()]
        predictor.add_new_points_or_box(state, 0, 1, points=[[5, 5]], labels=[0])  # where tracking has come to
        answers += track(predictor, state, start_frame_idx=12).values()
        return answers

    window, everything = run("window"), run("all")
    assert len(window) == 14 + 13 + 14
    assert all(torch.equal(a, b) for a, b in zip(window, everything, strict=True))


def test_only_the_frames_within_reach_of_the_position_and_of_prompts_keep_their_memory(predictor, clip):
    state = session(predictor, clip, keep="window", frame_idx=2)
    for t, _, _ in predictor.propagate_in_video(state, progress=False):
        known = state.track(1)
        assert all(t - s <= predictor.reach or s - 2 <= predictor.reach for s in known.propagated)
    assert predictor.reach == 4
    assert sorted(known.propagated) == [*range(3, 7), *range(LENGTH - 5, LENGTH)]
    assert sorted(known.faded) == list(range(7, LENGTH - 5))
    outputs = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    assert sorted(outputs) == list(range(3, LENGTH)) and outputs[12]["maskmem_features"] is None


def test_everything_stays_where_everything_is_kept(predictor, clip):
    state = session(predictor, clip, keep="all")
    track(predictor, state)
    assert sorted(state.track(1).propagated) == list(range(1, LENGTH)) and not state.track(1).faded


def test_old_frames_show_the_same_mask_again_but_for_a_pixel_of_its_rim(predictor, clip):
    shown = []
    for keep in ("all", "window"):
        state = session(predictor, clip, keep=keep, obj_ids=(1, 2))
        track(predictor, state)
        again = [predictor.clear_all_prompts_in_frame(state, t, 1)[2] for t in (5, 10, 15)]
        shown.append(torch.cat(again) > 0)
    assert isinstance(state.track(1).latest_output(15), FadedOutput)
    for masks, others in (shown, shown[::-1]):
        grown = F.max_pool2d(others.float(), 3, stride=1, padding=1) > 0
        assert masks.flatten(1).any(dim=1).all() and not (masks & ~grown).any()


def test_masks_of_skipped_frames_are_packed_too(predictor, clip):
    predictor.skip_mad_threshold = 1000.0
    try:
        state = session(predictor, clip, keep="window")
        masks = track(predictor, state)
    finally:
        predictor.skip_mad_threshold = 0
    known = state.track(1)
    assert sorted(known.carried) == [*range(1, 5), *range(LENGTH - 5, LENGTH)]
    assert sorted(known.faded_carried) == list(range(5, LENGTH - 5))
    assert len({id(each.masks.data.obj) for each in known.faded_carried.values()}) == 1, "in one block"
    assert iou(predictor.clear_all_prompts_in_frame(state, 12, 1)[2], masks[12]) > 0.98


@pytest.mark.parametrize("action", ["click", "start"])
def test_what_reaches_back_to_dropped_memory_is_answered_nearly_alike_and_says_so(predictor, clip, caplog, action):
    def answer(keep):
        state = session(predictor, clip, keep=keep)
        track(predictor, state)
        caplog.clear()
        if action == "click":
            return predictor.add_new_points_or_box(state, 15, 1, points=[[40, 40]], labels=[1])[2]
        return track(predictor, state, start_frame_idx=15, max_frame_num_to_track=2)[17]

    with caplog.at_level(logging.WARNING):
        window = answer("window")
        assert "frame 15 remembers frames 11, 12, 13, 14, whose memory was dropped" in caplog.text
        assert caplog.text.count("remembers frames") == 1
        everything = answer("all")
        assert not caplog.text
    assert iou(window, everything) > 0.95
    assert not torch.equal(window, everything)


def test_a_mask_on_an_old_frame_needs_no_memory(predictor, clip, caplog):
    state = session(predictor, clip, keep="window")
    track(predictor, state)
    predictor.add_new_mask(state, 15, 1, clip.labels[15] == 1)
    assert not caplog.text


def test_what_is_kept_of_a_frame_is_small(predictor, clip):
    state = session(predictor, clip, keep="window")
    track(predictor, state)
    faded = state.track(1).faded[15]
    assert len(faded.packed.data) < 0.15 * 4 * 32 * 32


def test_what_is_kept_of_many_frames_is_in_few_blocks_of_each_object(predictor, clip):
    state = session(predictor, clip, keep="window", obj_ids=(1, 2))
    track(predictor, state)
    faded = [list(each.faded.values()) for each in state.objects.values()]
    assert len(faded) > 1 and all(len(outputs) > 5 for outputs in faded)
    for block_of in (lambda output: output.packed.data.obj, lambda output: output.pointer.block):
        blocks = [{id(block_of(output)) for output in outputs} for outputs in faded]
        assert all(len(ids) == 1 for ids in blocks) and len(set.union(*blocks)) == len(faded)


def test_old_results_can_be_copied_and_pickled_by_themselves(predictor, clip):
    state = session(predictor, clip, keep="window")
    track(predictor, state)
    for copy_of in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        known = copy_of(state["output_dict_per_obj"])[0]["non_cond_frame_outputs"][15]
        expected = state.track(1).faded[15]
        assert torch.equal(known.pred_masks, expected.pred_masks) and torch.equal(known.obj_ptr, expected.obj_ptr)
        assert known.obj_ptr.untyped_storage().nbytes() == 4 * predictor.hidden_dim, "without all other pointers"


@pytest.mark.parametrize("options", [{"keep": "disk"}, {"corrections": "none"}])
def test_unknown_options_are_refused(predictor, clip, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        predictor.init_state(list(clip.frames), **options)


# Corrections that stick


def test_looking_ahead_drops_nothing_that_the_next_frame_remembers(clip, caplog):
    frames = np.repeat(clip.frames[:1], LENGTH, axis=0)  # nothing moves, so that key frames lie far apart
    frames[20:] = clip.frames[8]  # and then something has
    looks_ahead = ["skip_mad_threshold=0.3", "skip_strategy=memory_guided", "skip_lookahead=16"]
    predictor = build(*(f"++model.{option}" for option in looks_ahead))

    def run(keep):
        state = predictor.init_state(list(frames), keep=keep)
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        answers = track(predictor, state)
        return [d.frame for d in state.decisions if d.action == "processed"], answers

    keys, window = run("window")
    assert any(later - earlier > predictor.reach for earlier, later in zip([0, *keys], keys, strict=False)), keys
    _, everything = run("all")
    for t, masks in everything.items():
        assert torch.equal(window[t], masks), f"frame {t}"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_refining_a_packed_frame_says_that_the_answer_is_only_close(predictor, clip, caplog):
    state = session(predictor, clip, keep="window")
    track(predictor, state)
    predictor.add_new_points_or_box(state, LENGTH - 1, 1, points=[[5, 5]], labels=[0])
    assert "were packed" not in caplog.text
    predictor.add_new_points_or_box(state, 12, 1, points=[[5, 5]], labels=[0])
    assert "the click refines frame 12, whose masks were packed" in caplog.text


def test_a_sticky_correction_is_returned_by_propagation_and_remembered(predictor, clip):
    state = session(predictor, clip, keep="window", corrections="sticky")
    track(predictor, state)
    _, _, preview = predictor.add_new_points_or_box(state, 20, 1, points=[[5, 5]], labels=[1])
    after = track(predictor, state)
    torch.testing.assert_close(after[20], preview)
    assert sorted(state.track(1).prompted) == [0, 20]


# Batches


def many(predictor, clip):
    """Five objects: three prompted together, one of them twice, and two that came later."""
    state = predictor.init_state(list(clip.frames[:10]), keep="all")
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, clip.labels[0] == obj_id)
    predictor.add_new_mask(state, 0, 3, (clip.labels[0] > 0))
    predictor.add_new_mask(state, 5, 3, (clip.labels[5] > 0))
    predictor.add_new_mask(state, 2, 4, clip.labels[2] == 1)
    predictor.add_new_mask(state, 2, 5, clip.labels[2] == 2)
    return state


@pytest.fixture(scope="module")
def one_by_one(predictor, clip):
    return track(predictor, many(predictor, clip), start_frame_idx=2)


@pytest.mark.parametrize(("most", "sizes"), [(16, {1, 2}), (1, {1})])
def test_objects_of_equal_layout_share_a_batch_and_answer_as_one_by_one(
    predictor, clip, one_by_one, monkeypatch, most, sizes
):
    found, decode = set(), predictor.decode_masks

    def counted(features, *args, **kwargs):
        found.add(len(features))
        return decode(features, *args, **kwargs)

    state = many(predictor, clip)
    monkeypatch.setattr(predictor, "decode_masks", counted)
    monkeypatch.setattr(predictor, "max_batch_objects", most)
    batched = track(predictor, state, start_frame_idx=2)
    assert found == sizes
    for t, masks in batched.items():
        torch.testing.assert_close(masks, one_by_one[t], rtol=1e-4, atol=2e-3)


def test_a_batch_is_kept_object_by_object(predictor, clip, monkeypatch):
    monkeypatch.setattr(predictor, "max_batch_objects", 16)
    state = session(predictor, clip, keep="all", obj_ids=(1, 2))
    track(predictor, state, max_frame_num_to_track=3)
    for obj_id in (1, 2):
        output = state.track(obj_id).propagated[3]
        for value in (output.pred_masks, output.obj_ptr, output.maskmem_features, output.ious):
            assert value.shape[0] == 1 and value.untyped_storage().nbytes() == value.nbytes


def test_what_is_kept_on_the_cpu_has_arrived_before_it_is_read(predictor, clip, monkeypatch):
    early = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to and (kwargs or {}).get("non_blocking"):
                early.append(args)
            return func(*args, **(kwargs or {}))

    keep = predictor._keep

    def watched(*args):
        with Watch():
            return keep(*args)

    monkeypatch.setattr(predictor, "_keep", watched)
    state = session(predictor, clip, (1, 2), keep="window", offload_state_to_cpu=True)
    track(predictor, state, max_frame_num_to_track=2)
    assert not early


@pytest.mark.gpu
def test_a_busy_gpu_keeps_on_the_cpu_what_an_idle_one_does(clip, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    predictor = build().to("cuda")

    def run():
        state = session(predictor, clip, (1, 2), keep="all", offload_state_to_cpu=True)
        return track(predictor, state, max_frame_num_to_track=4)

    idle, keep = run(), predictor._keep

    def behind(state, output):
        torch.cuda._sleep(10**8)  # cycles: copies that are not waited for would be read long before they are made
        return keep(state, output)

    monkeypatch.setattr(predictor, "_keep", behind)
    busy = run()
    for t, logits in idle.items():
        assert torch.allclose(logits, busy[t], atol=1e-3 * logits.abs().max().item())


def test_objects_that_may_not_overlap_in_memory_are_tracked_one_by_one(clip):
    predictor = build("++model.non_overlap_masks_for_mem_enc=true", "++model.max_batch_objects=4")
    masks = []
    for obj_ids in ((1, 2), (2,)):
        state = session(predictor, clip, keep="all", obj_ids=obj_ids)
        masks.append(track(predictor, state, max_frame_num_to_track=3)[3][-1])
    assert torch.equal(*masks)


def test_a_batch_size_that_makes_no_sense_is_refused():
    with pytest.raises(Exception, match="max_batch_objects must be 1 or more, or None, got 0"):
        build("++model.max_batch_objects=0")


# Closing


def test_a_closed_session_frees_what_it_held_and_refuses_further_use(predictor, clip):
    with predictor.open(list(clip.frames), keep="all") as state:
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        track(predictor, state, max_frame_num_to_track=2)
        loop = predictor.propagate_in_video(state, progress=False)
        next(loop)
    assert not state.objects and not state.features and not state.decisions
    uses = (
        lambda: next(loop),
        lambda: predictor.add_new_mask(state, 0, 1, np.ones((HEIGHT, WIDTH))),
        lambda: predictor.add_new_points_or_box(state, 0, 1, points=[[5, 5]], labels=[1]),
        lambda: predictor.propagate_in_video(state),
        lambda: predictor.remove_object(state, 1),
        lambda: predictor.clear_all_prompts_in_frame(state, 0, 1),
        lambda: predictor.reset_state(state),
    )
    for use in uses:
        with pytest.raises(ValueError, match="this session is closed: open the video again"):
            use()


def test_a_session_is_closed_when_its_block_fails(predictor, clip):
    with pytest.raises(ZeroDivisionError), predictor.open(list(clip.frames)) as state:
        1 / 0  # noqa: B018
    assert state.is_closed


def test_nothing_of_a_video_outlives_its_session(predictor, clip):
    def tensors_after_one_video():
        with predictor.open(list(clip.frames[:4])) as state:
            predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
            track(predictor, state)
        gc.collect()
        return sum(1 for each in gc.get_objects() if issubclass(type(each), torch.Tensor))

    first = tensors_after_one_video()
    assert {tensors_after_one_video() for _ in range(3)} == {first}

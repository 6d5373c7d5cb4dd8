"""Sessions that are saved and loaded: the same masks afterwards, and refusals where they cannot be."""

import numpy as np
import pytest
import torch

from sam2.build_sam import build_sam2_video_predictor
from sam2.frame_skipping import SkipOptions
from sam2.utils.drawn_clips import draw_clip

HEIGHT, WIDTH, LENGTH = 96, 128, 24


def build():
    return build_sam2_video_predictor(device="cpu", hydra_overrides_extra=["++model.image_size=128"])


@pytest.fixture(scope="module")
def clip():
    return draw_clip(LENGTH, HEIGHT, WIDTH, num_objects=2, seed=3, still=range(10, 20))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def predictor(model):
    model.skipping = SkipOptions(0)
    yield model
    model.skipping = SkipOptions()


def prompted(predictor, clip, keep="window"):
    state = predictor.init_state(list(clip.frames), keep=keep)
    predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    predictor.add_new_points_or_box(state, 3, "two", points=[[40, 40]], labels=[1])
    return state


def track(predictor, state, first=None, last=None):
    """Frame index -> mask logits, from the first to the last frame."""
    shown = {}
    for t, _, logits in predictor.propagate_in_video(state, first, progress=False):
        shown[t] = logits
        if t == last:
            break
    return shown


@pytest.mark.parametrize(("keep", "stop"), [("window", None), ("window", 16), ("all", 2)])
def test_a_loaded_session_goes_on_as_if_it_had_not_been_interrupted(predictor, clip, tmp_path, keep, stop):
    whole = track(predictor, prompted(predictor, clip, keep))
    state = prompted(predictor, clip, keep)
    found = {} if stop is None else track(predictor, state, last=stop)
    predictor.save(state, tmp_path / "session.pt")
    elsewhere = build()
    elsewhere.skip_mad_threshold = 0
    loaded = elsewhere.load(tmp_path / "session.pt", list(clip.frames))
    assert (loaded.keep, loaded.obj_ids, loaded.decisions) == (keep, [1, "two"], state.decisions)
    found |= track(elsewhere, loaded, None if stop is None else stop + 1)
    assert list(found) == list(whole)
    assert all(torch.equal(found[t], whole[t]) for t in whole)


GATES = {
    "naive": SkipOptions(0.02),
    "flow": SkipOptions(0.05, "mask_aware", "flow", max_consecutive_skips=3),
    "memory_guided": SkipOptions(0.4, "memory_guided"),
    "look-ahead": SkipOptions(0.6, "memory_guided", lookahead=6),
}


@pytest.mark.parametrize(
    ("gate", "reverse"),
    [
        ("naive", False), ("flow", False), ("memory_guided", False), ("memory_guided", True),
        ("look-ahead", False), ("look-ahead", True),
    ],
)  # fmt: skip
def test_a_run_that_skips_goes_on_with_what_its_gate_knew(predictor, clip, tmp_path, gate, reverse):
    predictor.skipping = GATES[gate]

    def session():
        state = predictor.init_state(list(clip.frames))
        predictor.add_new_mask(state, 20, 1, clip.labels[20] == 1)
        predictor.add_new_mask(state, 20, 2, clip.labels[20] == 2)
        predictor.add_new_mask(state, 2, 2, clip.labels[2] == 2)
        return state

    def steps(state, first=None):
        start = (20 if reverse else 2) if first is None else first
        for t, _, logits in predictor.propagate_in_video(state, start, reverse=reverse, progress=False):
            yield t, state.decision_of[t][:4], logits.clone()

    whole = list(steps(session()))
    assert {decision[1] for _, decision, _ in whole} >= {"prompted", "processed"}
    stops = (3, 11)
    if gate == "look-ahead":
        skipped = [i for i, (_, decision, _) in enumerate(whole) if decision[1] == "warped"]
        stops = (3, skipped[0], next(i for i in skipped if i - 1 in skipped and i + 1 in skipped))
    for stop in stops:
        state = session()
        stopped = next(t for i, (t, _, _) in enumerate(steps(state)) if i == stop)
        predictor.save(state, tmp_path / "session.pt")
        loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
        for resumed in (state, loaded):
            rest = list(steps(resumed, stopped + (-1 if reverse else 1)))
            assert [found[:2] for found in rest] == [wanted[:2] for wanted in whole[stop + 1 :]]
            assert all(torch.equal(a[2], b[2]) for a, b in zip(rest, whole[stop + 1 :], strict=True))


@pytest.mark.parametrize("change", ["a prompt", "another start", "other options", "the other direction", "a reset"])
def test_a_run_that_does_not_go_on_where_the_last_one_stopped_begins_with_a_key_frame(predictor, clip, change):
    predictor.skip_mad_threshold = 1000.0
    state = prompted(predictor, clip)
    track(predictor, state, last=10)
    start, options = 11, {}
    if change == "a prompt":
        predictor.add_new_points_or_box(state, 10, 1, points=[[40, 40]], labels=[1])
    elif change == "another start":
        start = 13
    elif change == "other options":
        predictor.max_consecutive_skips = 100
    elif change == "the other direction":
        start, options = 9, {"reverse": True}
    else:
        predictor.reset_state(state)
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
    next(predictor.propagate_in_video(state, start, progress=False, **options))
    assert state.decision_of[start].action == "processed"


def test_what_was_found_before_is_shown_as_before(predictor, clip, tmp_path):
    predictor.skip_mad_threshold = 0.01
    state = prompted(predictor, clip)
    track(predictor, state, last=21)
    predictor.save(state, tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    assert state.track(1).faded and state.track(1).faded_carried and state.track(1).carried
    for t in range(22):
        for obj_id in (1, "two"):
            first, second = (each.track(obj_id).latest_masks(t) for each in (state, loaded))
            assert torch.equal(first, second)
    again = predictor.clear_all_prompts_in_frame(loaded, 3, "two")
    assert torch.equal(again[2], predictor.clear_all_prompts_in_frame(state, 3, "two")[2])


def test_statuses_are_those_of_before(predictor, clip, tmp_path):
    predictor.skip_mad_threshold = 0.01
    state = prompted(predictor, clip)
    track(predictor, state)
    predictor.save(state, tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    predictor.skip_mad_threshold = 0
    seen = {}
    for each in (state, loaded):
        results = predictor.propagate_results(each, 0, progress=False, obj_ids=["two"])
        seen[each is loaded] = [result[1].status for result in results]
    assert seen[True] == seen[False] and {"prompted", "tracked", "reused"} <= {*seen[True]}


def test_prompts_can_be_refined_after_loading(predictor, clip, tmp_path):
    state = prompted(predictor, clip)
    predictor.save(state, tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    click = {"points": [[60, 60]], "labels": [0], "clear_old_points": False}
    first, second = (predictor.add_new_points_or_box(each, 3, "two", **click)[2] for each in (state, loaded))
    assert torch.equal(first, second)
    assert loaded["point_inputs_per_obj"][1][3]["point_labels"].tolist() == [[1, 0]]


def test_loading_runs_no_code_and_the_file_is_small(predictor, clip, tmp_path):
    state = prompted(predictor, clip)
    track(predictor, state)
    predictor.save(state, tmp_path / "session.pt")
    content = torch.load(tmp_path / "session.pt", weights_only=True)
    assert content["format"] == "sam2 video session"
    assert (tmp_path / "session.pt").stat().st_size < 2_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["session.pt"]


def test_a_failure_leaves_the_file_of_before(predictor, clip, tmp_path, monkeypatch):
    path = tmp_path / "session.pt"
    path.write_text("before")
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor.save(prompted(predictor, clip), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_another_video_is_refused(predictor, clip, tmp_path):
    predictor.save(prompted(predictor, clip), tmp_path / "session.pt")
    for frames, message in (
        (clip.frames[:-1], "is of another video: of 24 frames of 128x96, this one has 23 of 128x96"),
        (clip.frames[:, :64], "is of another video: of 24 frames of 128x96, this one has 24 of 128x64"),
        (clip.frames[::-1], "is of another video: frame 0 shows another picture"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.load(tmp_path / "session.pt", list(frames))


def test_the_same_video_decoded_a_little_differently_is_accepted(predictor, clip, tmp_path):
    predictor.save(prompted(predictor, clip), tmp_path / "session.pt")
    noise = np.random.default_rng(0).integers(-2, 3, clip.frames.shape)
    predictor.load(tmp_path / "session.pt", list((clip.frames + noise).clip(0, 255).astype(np.uint8)))


def test_another_model_is_refused(predictor, clip, tmp_path):
    predictor.save(prompted(predictor, clip), tmp_path / "session.pt")
    other = build()
    with torch.no_grad():
        other.no_mem_embed.add_(1.0)
    with pytest.raises(ValueError, match="was saved with another model"):
        other.load(tmp_path / "session.pt", list(clip.frames))


def test_files_that_are_no_session_are_refused(predictor, clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        predictor.load(tmp_path / "nothing.pt", list(clip.frames))
    (tmp_path / "text.pt").write_text("no session")
    torch.save({"model": {}}, tmp_path / "weights.pt")
    for name in ("text.pt", "weights.pt"):
        with pytest.raises(ValueError, match=f"{name} is no saved session"):
            predictor.load(tmp_path / name, list(clip.frames))


def test_sessions_that_cannot_be_saved_are_refused(predictor, clip, tmp_path):
    path = tmp_path / "session.pt"
    with predictor.open(list(clip.frames)) as state:
        predictor.add_new_mask(state, 0, object(), clip.labels[0] == 1)
        with pytest.raises(TypeError, match="cannot be saved: use numbers, strings or tuples"):
            predictor.save(state, path)
    with pytest.raises(ValueError, match="this session is closed"):
        predictor.save(state, path)
    with predictor.stream(color="rgb") as stream, pytest.raises(ValueError, match="a stream cannot be saved"):
        predictor.save(stream.state, path)
    assert not path.exists()


def test_a_saved_session_is_readable_as_files_usually_are_and_takes_numpy_options(predictor, clip, tmp_path):
    predictor.skipping = SkipOptions(np.float64(0.05))
    state = prompted(predictor, clip)
    track(predictor, state, last=2)
    (tmp_path / "other").write_bytes(b"")
    predictor.save(state, tmp_path / "session.pt")
    assert (tmp_path / "session.pt").stat().st_mode == (tmp_path / "other").stat().st_mode
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    assert loaded.obj_ids == state.obj_ids


def test_ids_and_directions_that_were_numpy_values_are_loaded_as_plain_ones(predictor, clip, tmp_path):
    predictor.skipping = SkipOptions(0.05)
    state = predictor.init_state(list(clip.frames))
    ids = [np.int64(4), (np.int64(1), np.str_("left"), np.float64(0.5))]
    for obj_id in ids:
        predictor.add_new_mask(state, 4, obj_id, clip.labels[4] == 1)
    for t, *_ in predictor.propagate_in_video(state, 4, reverse=np.bool_(True), progress=False):
        if t == 3:
            break
    predictor.save(state, tmp_path / "session.pt")
    loaded = predictor.load(tmp_path / "session.pt", list(clip.frames))
    assert loaded.obj_ids == ids and loaded.track(4).tracked == {4: True, 3: True} and loaded.paused.reverse is True

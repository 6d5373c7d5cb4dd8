"""Who tracks what with which model, and plans that decide as tracking does."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam2.build_sam import EMBEDDED, build_sam2_video_predictor, packaged_file
from sam2.frame_skipping import SkipOptions
from sam2.modeling import precision
from sam2.track_guard import TrackGuard
from sam2.utils.drawn_clips import draw_clip, write_davis_layout
from sam2.vos_runs import (
    ModelFiles,
    Rank,
    build_predictor,
    named_device,
    planned_decisions,
    run_token,
    share_out,
    track_frames,
    warm_up,
)

CPU = torch.device("cpu")
PUBLISHED = (0.05, 0.07, 0.10, 0.15, 0.25)


def test_a_process_without_torchrun_is_alone():
    assert Rank.from_environment({}) == Rank(0, 1, 0)


def test_ranks_are_numbered_by_the_environment():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert Rank.from_environment(environment) == Rank(rank=5, world_size=8, local_rank=1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one"}, "RANK must be a whole number, got 'one'"),
        ({"RANK": "-1"}, "RANK must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be below WORLD_SIZE, got 2 and 2"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(environment, message):
    with pytest.raises(ValueError, match=message):
        Rank.from_environment(environment)


def test_each_rank_has_the_gpu_of_its_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Rank(3, 4, 1).device("cuda") == torch.device("cuda", 1)
    assert Rank(3, 4, 1).device("cuda:0") == torch.device("cuda", 0)
    assert Rank(3, 4, 1).device("cpu") == torch.device("cpu")
    assert Rank(0, 1, 0).device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="--device 'cuda:2' is not there: torch finds 2 of the kind"):
        Rank(0, 1, 0).device("cuda:2")
    with pytest.raises(ValueError, match="LOCAL_RANK 2 needs a GPU of its own, and there are 2"):
        Rank(2, 4, 2).device("cuda")


def test_a_device_that_is_unknown_or_not_there_is_refused_by_the_name_of_its_option(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert named_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:x"):
        with pytest.raises(ValueError, match=f"--device must be cuda, mps or cpu, .* got '{name}'"):
            named_device(name)
    for name in ("cuda", "mps"):
        with pytest.raises(ValueError, match=f"--device '{name}' is not there: torch finds 0"):
            named_device(name)


def test_a_config_that_makes_no_predictor_is_named(tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text(packaged_file("configs", EMBEDDED.config_file.removeprefix("configs/")).read_text())
    config.write_text(config.read_text().replace("image_size:", "picture_size: 3\n  image_size:", 1))
    with pytest.raises(ValueError, match=r"(?s)config: .*typo\.yaml makes no predictor: .*'picture_size'"):
        build_predictor(str(config), None, torch.device("cpu"), "float32")


def torchrun(start, rank, **others):
    """What torchrun tells a process of one node, where nothing that it was told itself differs between starts."""
    told = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GROUP_WORLD_SIZE": "1"}
    error_file = f"/tmp/torchelastic_{start}/none_x/attempt_0/{rank}/error.json"
    return {**told, "TORCHELASTIC_ERROR_FILE": error_file, **others}


def test_the_processes_of_a_run_have_one_token_and_runs_have_different_ones():
    alone = Rank()
    assert run_token({}, alone) != run_token({}, alone)
    first, second = Rank(0, 2, 0), Rank(1, 2, 1)
    assert run_token(torchrun("a", 0), first) == run_token(torchrun("a", 1), second)
    again = [torchrun("b", 0), torchrun("a", 0, TORCHELASTIC_RESTART_COUNT="1")]
    assert len({run_token(each, first) for each in (torchrun("a", 0), *again)}) == 3


def test_on_several_nodes_a_run_is_known_by_its_rendezvous():
    nodes = [torchrun(node, 0, GROUP_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="job") for node in ("a", "b")]
    tokens = {run_token(each, Rank(i, 2, 0)) for i, each in enumerate(nodes)}
    assert len({*tokens, run_token({**nodes[0], "TORCHELASTIC_RUN_ID": "next"}, Rank(0, 2, 0))}) == 2


def test_sequences_are_shared_out_longest_first_to_whoever_has_least():
    lengths = {"a": 10, "b": 40, "c": 25, "d": 30, "e": 20}
    assert share_out(lengths, 2) == [["b", "e"], ["d", "c", "a"]]
    assert share_out(dict(reversed(lengths.items())), 2) == share_out(lengths, 2)
    assert share_out({"a": 1}, 3) == [["a"], [], []]


def test_the_embedded_model_is_found_without_building_it():
    model = ModelFiles.find(None, None)
    weights = packaged_file("checkpoints", EMBEDDED.checkpoint).read_bytes()
    assert (model.image_size, model.skipping) == (352, SkipOptions())
    assert model.checkpoint_sha256 == hashlib.sha256(weights).hexdigest()


def test_skip_options_of_a_config_are_the_defaults(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("model: {image_size: 512, skip_strategy: mask_aware, skip_mad_threshold: 0.2}")
    model = ModelFiles.find(str(config), None)
    assert (model.image_size, model.skipping) == (512, SkipOptions(0.2, "mask_aware"))
    assert model.settings(model.skipping, "float32", CPU) == {
        "strategy": "mask_aware", "threshold": 0.2, "warp": None, "lookahead": 0, "max_consecutive_skips": None,
        "config": "mine", "image_size": 512, "dtype": "float32", "checkpoint_sha256": None,
    }  # fmt: skip


def test_a_search_factor_of_the_config_or_ones_own_is_checked_and_on_record(tmp_path):
    config = tmp_path / "near.yaml"
    config.write_text("model: {image_size: 512, search_factor: 2}")
    plain, model = ModelFiles.find(None, None), ModelFiles.find(str(config), None)
    assert "search_factor" not in plain.settings(plain.skipping, "float32", CPU)
    assert model.settings(model.skipping, "float32", CPU)["search_factor"] == 2
    assert ModelFiles.find(str(config), None, search_factor=1.5).search_factor == 1.5
    with pytest.raises(ValueError, match="search_factor must be a number of 1 or more, or None, got 0"):
        ModelFiles.find(str(config), None, search_factor=0)


def test_a_guard_of_the_config_or_ones_own_is_on_record(tmp_path):
    config = tmp_path / "guarded.yaml"
    config.write_text("model: {image_size: 512, guard: {_target_: sam2.track_guard.TrackGuard, most_leap: 2}}")
    plain, model = ModelFiles.find(None, None), ModelFiles.find(str(config), None)
    assert "guard" not in plain.settings(plain.skipping, "float32", CPU)
    assert model.settings(model.skipping, "float32", CPU)["guard"]["most_leap"] == 2
    for bad in ("{_target_: sam2.track_guard.TrackGuard, most_leap: -1}", "true"):
        config.write_text(f"model: {{image_size: 512, guard: {bad}}}")
        with pytest.raises(ValueError, match="guarded.yaml has no guard in model.guard: "):
            ModelFiles.find(str(config), None)
    own = TrackGuard(most_growth=3)
    assert ModelFiles.find(str(config), None, guard=own).guard == own


def test_an_image_size_of_ones_own_is_checked_and_on_record(tmp_path):
    model = ModelFiles.find("tiny", None, 512)
    assert model.image_size == model.settings(model.skipping, "float32", CPU)["image_size"] == 512
    (tmp_path / "sizeless.yaml").write_text("model: {}")
    assert ModelFiles.find(str(tmp_path / "sizeless.yaml"), None, 64).image_size == 64
    with pytest.raises(ValueError, match="image_size must be a whole number of pixels divisible by 32, got 500"):
        ModelFiles.find("tiny", None, 500)


@pytest.mark.parametrize("native", [False, True])
def test_settings_say_what_auto_comes_to(monkeypatch, native):
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda device: native)
    model = ModelFiles.find("tiny", None)
    assert model.settings(SkipOptions(), "auto", CPU)["dtype"] == ("bfloat16" if native else "float32")
    assert model.settings(SkipOptions(0.1, "memory_guided"), "float32", CPU)["warp"] == "flow"
    assert model.settings(SkipOptions(None), "float32", CPU)["threshold"] == 0.0


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*none.pt; checkpoints/download_ckpts.sh"):
        ModelFiles.find("tiny", Path("none.pt"))
    (tmp_path / "empty.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match="does not say model.image_size"):
        ModelFiles.find(str(tmp_path / "empty.yaml"), None)


def test_warming_up_processes_two_frames(tmp_path, monkeypatch):
    root = write_davis_layout(tmp_path, {"a": draw_clip(3, 64, 64, num_objects=1, seed=0, still=range(3))})
    predictor = build_sam2_video_predictor(device="cpu")
    processed, encode = [], predictor.encode_image
    monkeypatch.setattr(predictor, "encode_image", lambda image: processed.append(image.shape) or encode(image))
    warm_up(predictor, root, "a")
    assert len(processed) == 2


@pytest.mark.parametrize(("ids", "expected"), [([1, 2, 255], {0, 1, 2}), ([255], {0, 255})])
def test_255_is_tracked_where_it_is_the_only_id_and_is_void_beside_others(tmp_path, ids, expected):
    clip = draw_clip(2, 64, 96, num_objects=len(ids), seed=0, still=range(2))
    root = write_davis_layout(tmp_path, {"a": clip})
    labels = np.array([0, *ids], np.uint8)[clip.labels[0]]
    predictor = build_sam2_video_predictor(device="cpu", hydra_overrides_extra=["++model.image_size=128"])
    first, _ = track_frames(predictor, root.frame_paths("a"), labels)
    assert set(np.unique(first.labels)) == expected


@pytest.mark.parametrize("clip", ["blackswan", "paragliding-launch"])
def test_a_plan_for_a_1024_model_decides_as_published(shared, clip):
    published = json.loads((shared / "golden" / "published_gate.json").read_text())[clip]
    frames = sorted((shared / "davis_mini" / "JPEGImages" / "480p" / clip).glob("*.jpg"))
    plan = list(planned_decisions(frames, 1024, [SkipOptions(t) for t in PUBLISHED], threads=2))
    for threshold, decisions in zip(PUBLISHED, zip(*plan, strict=True), strict=True):
        expected = published[f"{threshold:.2f}"]
        assert [d.frame for d in decisions if d.action == "reused"] == expected["skipped"], threshold
        assert [d.change for d in decisions[1:]] == pytest.approx(expected["mad"], abs=1e-6)


def test_a_plan_keeps_to_the_limit_of_skips_and_tells_copies_from_carried_masks(tmp_path):
    clip = draw_clip(6, 64, 64, num_objects=1, seed=0, still=range(6))
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / f"{t}.png")
    options = [SkipOptions(0.0), SkipOptions(0.1), SkipOptions(0.1, warp="flow", max_consecutive_skips=2)]
    plan = list(planned_decisions(sorted(tmp_path.iterdir()), 32, options))
    actions = [[d.action for d in decisions] for decisions in zip(*plan, strict=True)]
    assert actions == [
        ["prompted", "processed", "processed", "processed", "processed", "processed"],
        ["prompted", "reused", "reused", "reused", "reused", "reused"],
        ["prompted", "warped", "warped", "processed", "warped", "warped"],
    ]


def test_a_strategy_that_needs_masks_cannot_be_planned():
    with pytest.raises(ValueError, match="which only the strategy \"naive\" can do, got 'mask_aware'"):
        next(planned_decisions([], 32, [SkipOptions(0.1, "mask_aware")]))

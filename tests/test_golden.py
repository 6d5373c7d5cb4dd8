"""The same answers as the original, as recorded in shared/golden: state dicts, encoder, video sessions."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from sam2.build_sam import build_sam2

TOLERANCE = 1e-4
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])]
CUDA_TOLERANCE = 1e-3
SCENARIOS = (
    "clicks_boxes_masks", "refine_after_tracking", "reverse", "occluded", "remove_and_clear", "memory_options",
    "sam2_not_2.1", "base_plus_full_size", "trained_paragliding",
)  # fmt: skip


def need(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def replay(shared):
    spec = importlib.util.spec_from_file_location("golden_replay", shared / "golden" / "replay.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded_shapes(shared):
    return json.loads((shared / "golden" / "state_dict_shapes.json").read_text())


def test_all_eight_state_dicts_have_the_originals_names_and_shapes(recorded_shapes):
    assert len(recorded_shapes) == 8
    for config, wanted in recorded_shapes.items():
        model = build_sam2(config, device="cpu")
        assert {name: list(value.shape) for name, value in model.state_dict().items()} == wanted, config


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
def test_encoder_gives_the_recorded_maps(size, device, shared, recipe, recorded_shapes):
    need(device)
    config = f"configs/sam2.1/sam2.1_hiera_{size}.yaml"
    model = build_sam2(config, device="cpu")
    model.load_state_dict(recipe.state_dict(recorded_shapes[config], 0))
    with torch.inference_mode():
        image = recipe.fill("input.image", (1, 3, 1024, 1024)).to(device)
        encoded = model.to(device).forward_image(image)
    tolerance = TOLERANCE if device == "cpu" else CUDA_TOLERANCE
    with np.load(shared / "golden" / "encoder.npz") as recorded:
        for level in range(3):
            for key, maps in (("fpn", "backbone_fpn"), ("pos", "vision_pos_enc")):
                wanted = recorded[f"{size}_{key}{level}"]
                values = encoded[maps][level].flatten().cpu()
                found = values[:: values.numel() // 2048][: len(wanted)].numpy()
                assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max(), (key, level)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_video_session_gives_the_recorded_masks(name, device, shared, recipe, replay):
    need(device)
    scenario = json.loads((shared / "golden" / "scenarios.json").read_text())[name]
    predictor = replay.build(scenario, recipe).to(device)
    frames = shared / scenario.get("frames", "clips/bedroom")
    found = replay.replay(predictor, str(frames), scenario)
    wanted = replay.load(shared / "golden" / f"video_{name}.npz")
    tolerance = scenario.get("tolerance", TOLERANCE if device == "cpu" else CUDA_TOLERANCE)
    assert replay.compare(found, wanted) < tolerance

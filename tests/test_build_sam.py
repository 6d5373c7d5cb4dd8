"""Builders: configs by any name, Hydra left alone, weights loaded strictly, errors that say what to do."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sam2 import build_sam
from sam2.build_sam import (
    HF_MODEL_ID_TO_FILENAMES,
    apply_overrides,
    build_sam2,
    build_sam2_hf,
    build_sam2_video_predictor,
    find_config,
    load_config,
    load_weights,
    packaged_file,
)
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS
from sam2.utils.drawn_clips import draw_clip

PROJECT = Path(__file__).resolve().parents[1]
NANO = packaged_file("checkpoints", "sam2.1_hiera_nano.pt")
SMALL = ["++model.image_size=64"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tiny", "sam2.1/sam2.1_hiera_t.yaml"),
        ("base_plus", "sam2.1/sam2.1_hiera_b+.yaml"),
        ("sam2.1_hiera_l", "sam2.1/sam2.1_hiera_l.yaml"),
        ("sam2_hiera_small", "sam2/sam2_hiera_s.yaml"),
        ("sam2_hiera_l.yaml", "sam2/sam2_hiera_l.yaml"),  # where upstream's first release had them
        ("configs/sam2/sam2_hiera_b+.yaml", "sam2/sam2_hiera_b+.yaml"),
        ("configs/sam2.1/sam2.1_hiera_s", "sam2.1/sam2.1_hiera_s.yaml"),
        ("sam2.1/sam2.1_hiera_nano.yaml", "sam2.1/sam2.1_hiera_nano.yaml"),
    ],
)
def test_configs_are_found_by_short_name_and_by_upstreams_path(name, file):
    assert find_config(name) == packaged_file("configs", file)


@pytest.mark.parametrize("build", [build_sam2, build_sam2_video_predictor])
def test_an_image_size_replaces_the_configs_and_gives_way_to_an_override(build):
    assert build(device="cpu", image_size=np.int64(96)).image_size == 96
    assert build(device="cpu", image_size=96, hydra_overrides_extra=SMALL).image_size == 64


@pytest.mark.parametrize("image_size", [100, 0, -32, 96.0, True, "96"])
def test_an_image_size_that_the_network_cannot_take_is_refused(image_size):
    with pytest.raises(ValueError, match=f"image_size must be .* divisible by 32, got {image_size!r}"):
        build_sam2(device="cpu", image_size=image_size)


def test_a_config_may_be_an_absolute_path_a_dict_or_an_omegaconf():
    by_path = load_config(str(find_config("nano")))
    as_dict: Any = OmegaConf.to_container(by_path)
    for config in (by_path, as_dict):
        model = build_sam2(config, device="cpu", hydra_overrides_extra=SMALL)
        assert model.image_size == 64
        assert OmegaConf.create(config).model.image_size == 352, "the caller's config must stay as it is"


def test_a_config_that_is_not_there_names_those_that_are():
    with pytest.raises(FileNotFoundError, match="config_file 'huge' is neither a file nor one of .*large"):
        build_sam2("huge")


def test_a_config_of_another_type_is_refused():
    with pytest.raises(TypeError, match="config_file must be a name, a path, a dict or an OmegaConf, got int"):
        build_sam2(5)  # type: ignore[arg-type]


def test_a_config_that_composes_others_is_refused():
    with pytest.raises(ValueError, match="`defaults` list"):
        build_sam2({"defaults": ["a"], "model": {}})


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match=r"`model.image_encoder` is missing; it holds \['speed', 'model'\]"):
        build_sam2_video_predictor({"speed": 1})


def test_without_arguments_the_embedded_model_and_its_weights_are_built():
    predictor = build_sam2_video_predictor()
    weights = torch.load(NANO, map_location="cpu", weights_only=True)["model"]
    assert isinstance(predictor, SAM2VideoPredictor) and not predictor.training
    torch.testing.assert_close(predictor.state_dict()["no_mem_embed"].cpu(), weights["no_mem_embed"].float())


def test_mode_and_classes_are_upstreams():
    model = build_sam2("nano", device="cpu", mode="train", hydra_overrides_extra=SMALL)
    assert type(model) is SAM2Base and model.training
    assert model.sam_mask_decoder.dynamic_multimask_via_stability
    plain = build_sam2_video_predictor("nano", device="cpu", hydra_overrides_extra=SMALL, apply_postprocessing=False)
    assert (plain.fill_hole_area, plain.binarize_mask_from_pts_for_mem_enc) == (0, False)
    cleaned = build_sam2_video_predictor("nano", device="cpu", hydra_overrides_extra=SMALL)
    assert (cleaned.fill_hole_area, cleaned.binarize_mask_from_pts_for_mem_enc) == (8, True)


def test_the_users_overrides_win_over_postprocessing():
    predictor = build_sam2_video_predictor("nano", device="cpu", hydra_overrides_extra=["++model.fill_hole_area=3"])
    assert predictor.fill_hole_area == 3


def test_an_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match="unknown keyword checkpoint: .* the checkpoint's name is ckpt_path"):
        build_sam2_video_predictor("nano", checkpoint=str(NANO))
    with pytest.raises(TypeError, match="unknown keyword num_maskmem"):
        build_sam2("nano", num_maskmem=3)


# Overrides


def config():
    return OmegaConf.create({"model": {"image_size": 256, "stages": [1, 2], "extra": {"a": 1}}})


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.image_size=512", "model.image_size", 512),
        ("++model.image_size=512", "model.image_size", 512),
        ("++model.new.deep=true", "model.new.deep", True),
        ("+model.scale=1e-6", "model.scale", 1e-6),
        ("model.stages=[3,4]", "model.stages", [3, 4]),
        ("++model.extra={b:2}", "model.extra", {"a": 1, "b": 2}),
        ("++model.name='a, b'", "model.name", "a, b"),
        ("++model.none=null", "model.none", None),
        ("~model.extra", "model", {"image_size": 256, "stages": [1, 2]}),
    ],
)
def test_overrides_follow_hydras_grammar(override, key, value):
    result = apply_overrides(config(), [override])
    found = OmegaConf.select(result, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_overrides_agree_with_hydras_own_compose():
    from hydra import compose, initialize_config_dir

    overrides = ["++model.image_size=512", "++model.sam_mask_decoder_extra_args.x=[1,{a:2}]", "~model.num_maskmem"]
    file = find_config("sam2.1_hiera_t")
    with initialize_config_dir(str(file.parent), version_base=None):
        wanted = compose(file.name, overrides=overrides)
    assert OmegaConf.to_container(apply_overrides(load_config(file), overrides)) == OmegaConf.to_container(wanted)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.typo=1", r"the config has no 'model.typo'; write \+\+model.typo="),
        ("+model.image_size=1", "has 'model.image_size' already"),
        ("~model.typo", "the config has no 'model.typo'"),
        ("model.image_size=1,2", "is a sweep"),
        ("no override", "hydra_overrides_extra"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(config(), [override])


def test_one_string_is_no_list_of_overrides():
    with pytest.raises(TypeError, match="must be a list of strings"):
        build_sam2("nano", hydra_overrides_extra="++model.image_size=64")


# Global state


def run_python(code: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_has_no_side_effects(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch; before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())\n"
        "import sam2.build_sam, sam2.sam2_video_predictor\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "assert not GlobalHydra.instance().is_initialized()\n"
        "assert not torch.cuda.is_initialized() and not torch.is_autocast_enabled()\n"
        "assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())\n"
    )
    assert run_python(code, tmp_path) == ""


def test_building_works_inside_before_and_after_a_users_own_hydra(tmp_path):
    (tmp_path / "app.yaml").write_text("size: 64\n")
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "from sam2.build_sam import build_sam2, build_sam2_video_predictor\n"
        "build_sam2('nano', device='cpu', hydra_overrides_extra=['++model.image_size=64'])\n"
        "@hydra.main(config_path='.', config_name='app', version_base=None)\n"
        "def main(cfg):\n"
        "    model = build_sam2('nano', device='cpu', hydra_overrides_extra=[f'++model.image_size={cfg.size}'])\n"
        "    assert GlobalHydra.instance().is_initialized()\n"
        "    assert hydra.compose('app').size == 64, 'the app must still find its own configs'\n"
        "    print('inside', model.image_size)\n"
        "main()\n"
        "import pathlib\n"
        "with hydra.initialize_config_dir(str(pathlib.Path(__file__).resolve().parent), version_base=None):\n"
        "    print('after', build_sam2_video_predictor('nano', device='cpu').image_size, hydra.compose('app').size)\n"
    )
    code = "import runpy, sys; sys.argv = ['app.py']; runpy.run_path('app.py', run_name='__main__')"
    output = run_python(code, tmp_path)
    assert "inside 64" in output and "after 352 64" in output


@pytest.fixture
def own_hydra(tmp_path):
    """A folder of the user's, which their Hydra looks in: configs of their own, and one of upstream's name."""
    from hydra import initialize_config_dir

    small: Any = load_config("nano")
    small.model.image_size = 64
    for name in ("mine.yaml", "configs/sam2.1/sam2.1_hiera_t.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# @package _global_\n" + OmegaConf.to_yaml(small))
    (tmp_path / "size").mkdir()
    (tmp_path / "size/wide.yaml").write_text("# @package model\nimage_size: 128\n")
    (tmp_path / "composed.yaml").write_text("defaults:\n  - mine\n  - size: wide\n")
    (tmp_path / "app.yaml").write_text("speed: 1\n")
    (tmp_path / "torn.yaml").write_text("defaults:\n  - nothing\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "overrides", "size"),
    [
        ("mine", (), 64),
        ("mine.yaml", ("++model.image_size=96",), 96),
        ("configs/sam2.1/sam2.1_hiera_t.yaml", (), 64),
        ("configs/sam2.1/sam2.1_hiera_t", (), 64),
        ("composed", (), 128),
        ("mine", ("+size=wide",), 128),
        ("nano", (), 352),
        ("configs/sam2.1/sam2.1_hiera_nano.yaml", ("++model.image_size=96",), 96),
    ],
)
def test_configs_of_the_users_own_hydra_come_before_the_packaged_ones(own_hydra, name, overrides, size):
    predictor = build_sam2_video_predictor(name, device="cpu", hydra_overrides_extra=overrides)
    assert (predictor.image_size, predictor.hidden_dim, predictor.fill_hole_area) == (size, 128, 8)


def test_without_a_name_the_users_own_hydra_is_not_asked(own_hydra):
    assert build_sam2(load_config(own_hydra / "mine.yaml"), device="cpu").image_size == 64
    (own_hydra / "configs/sam2.1/sam2.1_hiera_nano.yaml").write_text("model: {}")
    assert build_sam2(device="cpu").image_size == 352
    assert build_sam2(packaged_file("configs/sam2.1/sam2.1_hiera_nano.yaml"), device="cpu").image_size == 352


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("huge", (), FileNotFoundError, "config_file 'huge' is neither .*, nor in your Hydra search path file://"),
        ("torn", (), ValueError, "config_file 'torn' of your Hydra search path.*Could not load 'nothing'"),
        ("mine", ("model.typo=1",), ValueError, "'mine' of your Hydra .* Could not override 'model.typo'"),
        ("mine", ("+size=long",), ValueError, "Could not find 'size/long'"),
        ("app", (), ValueError, "describes no model: `model.image_encoder` is missing; it holds .*speed"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_users_own_hydra_is_named(own_hydra, name, overrides, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        build_sam2(name, device="cpu", hydra_overrides_extra=overrides)


def test_two_threads_can_build_at_once():
    sizes: dict[int, int] = {}

    def build(size: int) -> None:
        model = build_sam2("nano", device="cpu", hydra_overrides_extra=[f"++model.image_size={size}"])
        sizes[size] = model.image_size

    threads = [threading.Thread(target=build, args=(size,)) for size in (64, 96, 128, 160)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == {64: 64, 96: 96, 128: 128, 160: 160}


# Weights


@pytest.fixture(scope="module")
def model():
    return build_sam2("nano", device="cpu", hydra_overrides_extra=SMALL)


def test_safetensors_hold_the_same_weights(tmp_path, model):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = build_sam2("nano", tmp_path / "weights.safetensors", device="cpu", hydra_overrides_extra=SMALL)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_safetensors_that_were_cut_short_say_so(tmp_path, model):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), tmp_path / "torn.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "torn.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="torn.safetensors' is not a readable checkpoint"):
        load_weights(model, tmp_path / "torn.safetensors")


def test_weights_that_do_not_fit_are_listed(tmp_path, model):
    weights = dict(model.state_dict())
    del weights["no_mem_embed"]
    weights["something.else"] = torch.zeros(1)
    weights["no_mem_pos_enc"] = torch.zeros(1, 1, 256)
    torch.save({"model": weights}, tmp_path / "other.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = (
        r"1 missing: no_mem_embed; 1 unexpected: something.else; "
        r"1 of another shape: no_mem_pos_enc \(model \(1, 1, 128\), checkpoint \(1, 1, 256\)\)"
    )
    with pytest.raises(RuntimeError, match=message):
        load_weights(model, tmp_path / "other.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_how_weights_are_loaded_can_be_replaced(monkeypatch, model):
    loaded = []
    monkeypatch.setattr(build_sam, "_load_checkpoint", lambda model, ckpt_path: loaded.append(ckpt_path))
    build_sam2("nano", "any.pt", device="cpu", hydra_overrides_extra=SMALL)
    assert loaded == ["any.pt"]
    monkeypatch.undo()
    build_sam._load_checkpoint(model, None)
    with pytest.raises(FileNotFoundError, match="any.pt' is not there"):
        build_sam._load_checkpoint(model, "any.pt")


def test_a_checkpoint_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="does not fit the config: .* of another shape"):
        build_sam2("tiny", NANO, device="cpu")


def test_a_checkpoint_that_is_not_there_or_unreadable_says_so(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="no.pt' is not there; checkpoints/download_ckpts.sh"):
        load_weights(model, tmp_path / "no.pt")
    (tmp_path / "torn.pt").write_bytes(NANO.read_bytes()[:5000])
    with pytest.raises(ValueError, match="torn.pt' is not a readable checkpoint"):
        load_weights(model, tmp_path / "torn.pt")
    torch.save({"model": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(model, tmp_path / "list.pt")


def test_an_address_is_downloaded_once_into_a_cache(tmp_path, monkeypatch):
    import functools
    import http.server

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(NANO.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    address = f"http://127.0.0.1:{server.server_port}/{NANO.name}"
    try:
        first = build_sam.read_state_dict(address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert "no_mem_embed" in first
    assert "no_mem_embed" in build_sam.read_state_dict(address), "the second time comes from the cache"


# Hugging Face


def test_every_published_model_has_an_id():
    assert len(HF_MODEL_ID_TO_FILENAMES) == 8
    assert HF_MODEL_ID_TO_FILENAMES["facebook/sam2.1-hiera-base-plus"] == (
        "configs/sam2.1/sam2.1_hiera_b+.yaml",
        "sam2.1_hiera_base_plus.pt",
    )


def test_a_file_or_a_folder_stands_in_for_a_hub_id(tmp_path):
    (tmp_path / NANO.name).symlink_to(NANO)
    for source in (NANO, tmp_path):
        predictor = SAM2VideoPredictor.from_pretrained(str(source), device="cpu")
        assert predictor.hidden_dim == 128


def test_an_unknown_id_and_an_ambiguous_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model_id 'facebook/sam9' is neither a file, a folder nor one of facebook/"):
        build_sam2_hf("facebook/sam9")
    with pytest.raises(ValueError, match="exactly one checkpoint named like .*, found none"):
        build_sam2_hf(str(tmp_path))


def test_an_offline_miss_says_what_to_do(tmp_path):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(FileNotFoundError, match="sam2_hiera_tiny.pt of facebook/sam2-hiera-tiny is not in the cache"):
        build_sam2_hf("facebook/sam2-hiera-tiny", local_files_only=True, cache_dir=str(tmp_path))


def test_hub_options_reach_the_hub_and_the_rest_the_builder(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}
    monkeypatch.setattr(hub, "hf_hub_download", lambda **options: asked.update(options) or str(NANO))
    monkeypatch.setattr(build_sam, "HF_MODEL_ID_TO_FILENAMES", {"someone/nano": ("nano", NANO.name)})
    predictor = SAM2VideoPredictor.from_pretrained(
        "someone/nano", revision="v1", cache_dir="/tmp/c", local_files_only=True, device="cpu", dtype="bfloat16"
    )
    assert asked == {
        "repo_id": "someone/nano", "filename": NANO.name, "revision": "v1", "cache_dir": "/tmp/c",
        "local_files_only": True,
    }  # fmt: skip
    assert predictor.compute_dtype == torch.bfloat16
    assert build_sam._hf_download("someone/nano") == ("nano", str(NANO))
    with pytest.raises(TypeError, match="unknown keyword typo"):
        SAM2VideoPredictor.from_pretrained("someone/nano", typo=1)


# Compiled


def test_what_is_compiled_can_be_chosen(monkeypatch):
    compiled = []
    monkeypatch.setattr(SAM2VideoPredictorVOS, "_compile_all_components", lambda self: compiled.append(self))
    overrides = [*SMALL, "++model.compile_image_encoder=false"]
    predictor = build_sam2_video_predictor("nano", device="cpu", vos_optimized=True, hydra_overrides_extra=overrides)
    assert compiled == [predictor]


def test_the_optimised_predictor_compiles_its_parts_whole_and_keeps_names_and_answers(monkeypatch):
    compiled = []
    compile_for_real = torch.compile

    def trace_only(function, **options):
        """Dynamo traces the part as one graph, at any price; the graph then runs as it is instead of being tuned."""
        compiled.append((type(function.__self__).__name__, options["dynamic"]))
        return compile_for_real(function, backend="eager", fullgraph=options["fullgraph"], dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", trace_only)
    clip = draw_clip(4, 96, 128, num_objects=1, seed=3)
    answers = []
    for vos_optimized in (False, True):
        # 128 pixels, where the config's rotary tables are made for 352.
        predictor = build_sam2_video_predictor(
            "nano", NANO, device="cpu", vos_optimized=vos_optimized,
            hydra_overrides_extra=["++model.image_size=128", "++model.skip_mad_threshold=0"],
        )  # fmt: skip
        assert isinstance(predictor, SAM2VideoPredictorVOS) == vos_optimized
        state = predictor.init_state(list(clip.frames))
        predictor.add_new_mask(state, 0, 1, clip.labels[0] == 1)
        masks = [logits for _, _, logits in predictor.propagate_in_video(state, progress=False)]
        answers.append((list(predictor.state_dict()), torch.cat(masks)))
    assert compiled == [
        ("ImageEncoder", False), ("MemoryEncoder", False), ("MemoryAttention", True), ("PromptEncoder", False),
        ("MaskDecoder", False),
    ]  # fmt: skip
    assert answers[0][0] == answers[1][0]
    torch.testing.assert_close(answers[1][1], answers[0][1], rtol=1e-4, atol=1e-3)


def linear(out_features: int) -> torch.nn.Module:
    return torch.nn.Linear(1, out_features)


def test_a_config_may_name_a_model_of_ones_own():
    built = build_sam2({"model": {"_target_": f"{__name__}.linear", "out_features": 3}}, device="cpu",
                       apply_postprocessing=False)  # fmt: skip
    assert isinstance(built, torch.nn.Linear) and built.out_features == 3

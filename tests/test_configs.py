"""configs/: the values that Meta's checkpoints were trained with, written down here a second time, by variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

TRUNK = "model.image_encoder.trunk."
WIDTHS = "model.image_encoder.neck.backbone_channel_list"

# Keys in which sizes may differ, with the values of each.
SIZES: dict[str, dict[str, Any]] = {
    "t": {
        TRUNK + "embed_dim": 96,
        TRUNK + "num_heads": 1,
        TRUNK + "stages": [1, 2, 7, 2],
        TRUNK + "global_att_blocks": [5, 7, 9],
        TRUNK + "window_pos_embed_bkg_spatial_size": [7, 7],
        WIDTHS: [768, 384, 192, 96],
    },
    "s": {
        TRUNK + "embed_dim": 96,
        TRUNK + "num_heads": 1,
        TRUNK + "stages": [1, 2, 11, 2],
        TRUNK + "global_att_blocks": [7, 10, 13],
        TRUNK + "window_pos_embed_bkg_spatial_size": [7, 7],
        WIDTHS: [768, 384, 192, 96],
    },
    "b+": {
        TRUNK + "embed_dim": 112,
        TRUNK + "num_heads": 2,
        WIDTHS: [896, 448, 224, 112],
    },
    "l": {
        TRUNK + "embed_dim": 144,
        TRUNK + "num_heads": 2,
        TRUNK + "stages": [2, 6, 36, 4],
        TRUNK + "global_att_blocks": [23, 33, 43],
        TRUNK + "window_pos_embed_bkg_spatial_size": [7, 7],
        TRUNK + "window_spec": [8, 4, 16, 8],
        WIDTHS: [1152, 576, 288, 144],
    },
}

# Keys in which the two generations may differ.
GENERATIONS: dict[str, dict[str, Any]] = {
    "sam2": {"model.add_tpos_enc_to_obj_ptrs": False},
    "sam2.1": {
        "model.add_tpos_enc_to_obj_ptrs": True,
        "model.proj_tpos_enc_in_obj_ptrs": True,
        "model.use_signed_tpos_enc_to_obj_ptrs": True,
        "model.no_obj_embed_spatial": True,
    },
}


def sine_encoding(features: int) -> dict[str, Any]:
    values = {"num_pos_feats": features, "normalize": True, "scale": None, "temperature": 10000}
    return {"_target_": "sam2.modeling.position_encoding.PositionEmbeddingSine", **values}


def rotary_attention(**extra: Any) -> dict[str, Any]:
    shape = {"embedding_dim": 256, "num_heads": 1, "downsample_rate": 1, "feat_sizes": [64, 64], "dropout": 0.1}
    return {"_target_": "sam2.modeling.sam.transformer.RoPEAttention", "rope_theta": 10000.0, **shape, **extra}


# What all eight have in common.
COMMON: dict[str, Any] = {
    "_target_": "sam2.modeling.sam2_base.SAM2Base",
    "image_encoder": {
        "_target_": "sam2.modeling.backbones.image_encoder.ImageEncoder",
        "scalp": 1,
        "trunk": {"_target_": "sam2.modeling.backbones.hieradet.Hiera"},
        "neck": {
            "_target_": "sam2.modeling.backbones.image_encoder.FpnNeck",
            "position_encoding": sine_encoding(256),
            "d_model": 256,
            "fpn_top_down_levels": [2, 3],
            "fpn_interp_model": "nearest",
        },
    },
    "memory_attention": {
        "_target_": "sam2.modeling.memory_attention.MemoryAttention",
        "num_layers": 4,
        "d_model": 256,
        "pos_enc_at_input": True,
        "layer": {
            "_target_": "sam2.modeling.memory_attention.MemoryAttentionLayer",
            "d_model": 256,
            "dim_feedforward": 2048,
            "activation": "relu",
            "dropout": 0.1,
            "pos_enc_at_attn": False,
            "pos_enc_at_cross_attn_keys": True,
            "pos_enc_at_cross_attn_queries": False,
            "self_attention": rotary_attention(),
            "cross_attention": rotary_attention(rope_k_repeat=True, kv_in_dim=64),
        },
    },
    "memory_encoder": {
        "_target_": "sam2.modeling.memory_encoder.MemoryEncoder",
        "out_dim": 64,
        "position_encoding": sine_encoding(64),
        "mask_downsampler": {
            "_target_": "sam2.modeling.memory_encoder.MaskDownSampler",
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
        },
        "fuser": {
            "_target_": "sam2.modeling.memory_encoder.Fuser",
            "num_layers": 2,
            "layer": {
                "_target_": "sam2.modeling.memory_encoder.CXBlock",
                "dim": 256,
                "kernel_size": 7,
                "padding": 3,
                "layer_scale_init_value": 1e-6,
                "use_dwconv": True,
            },
        },
    },
    "num_maskmem": 7,
    "image_size": 1024,
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "compile_image_encoder": False,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "use_mlp_for_obj_ptr_proj": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        pairs.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return pairs


def load(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(values, dict)
    return flat({str(key): value for key, value in values.items()})


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_config_holds_upstream_values_and_no_others(generation, size):
    expected = flat(COMMON, "model.") | SIZES[size] | GENERATIONS[generation]
    answer = load(CONFIGS / generation / f"{generation}_hiera_{size}.yaml")
    assert answer == expected
    assert {key: type(value) for key, value in answer.items()} == {key: type(expected[key]) for key in answer}


def test_nano_differs_from_tiny_in_scale_only():
    nano, tiny = (load(CONFIGS / "sam2.1" / f"sam2.1_hiera_{size}.yaml") for size in ("nano", "t"))
    differing = {key for key in nano.keys() | tiny.keys() if nano.get(key) != tiny.get(key)}
    scale = ("dim", "d_model", "in_dim", "embed_dim", "embedding_dim", "dim_feedforward", "dropout", "num_pos_feats")
    shape = ("stages", "window_spec", "global_att_blocks", "backbone_channel_list", "feat_sizes", "image_size")
    memory = ("num_layers", "num_maskmem")
    assert {key.rsplit(".", 1)[-1] for key in differing} == {*scale, *shape, *memory}

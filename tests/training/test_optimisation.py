"""How fast each parameter learns, the course of the learning rate, and the averaged weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sam2.modeling.sam2_base import SAM2Base
from training.optimisation import AveragedWeights, build_optimiser, frozen_parameters, learning_rate
from training.recipe import Optimiser, Stage


def settings_by_name(network: SAM2Base, options: Optimiser) -> dict[str, tuple[float, float]]:
    """Parameter name -> (share of the learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = build_optimiser(network, options).param_groups
    return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_every_parameter_is_trained_and_only_matrices_decay(network: SAM2Base):
    settings = settings_by_name(network, Optimiser(weight_decay=0.1))
    assert settings.keys() == {name for name, _ in network.named_parameters()}
    decayed = {name for name, (_, decay) in settings.items() if decay}
    assert {settings[name] for name in decayed} == {(1.0, 0.1)}
    assert "image_encoder.trunk.blocks.0.attn.qkv.weight" in decayed
    assert "sam_prompt_encoder.mask_downscaling.0.weight" in decayed
    kept = ("bias", "norm1.weight", "pos_embed", "pos_embed_window", "no_mem_embed", "maskmem_tpos_enc")
    kept += ("mask_tokens.weight", "point_embeddings.0.weight", "no_obj_ptr", "gamma")
    for ending in kept:
        matching = [name for name in settings if name.endswith(ending)]
        assert matching and not decayed.intersection(matching), ending


def test_muon_takes_the_weights_of_linear_layers_and_adamw_the_rest(network: SAM2Base):
    settings = settings_by_name(network, Optimiser(kind="muon", weight_decay=0.1))
    assert settings == settings_by_name(network, Optimiser(weight_decay=0.1))
    muon, adamw = build_optimiser(network, Optimiser(kind="muon")).parts
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    orthogonal = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert orthogonal == {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert {names[id(p)] for group in adamw.param_groups for p in group["params"]} == settings.keys() - orthogonal


def test_both_optimisers_go_on_from_a_saved_state():
    def trained(layers: nn.Module, options: Optimiser, steps: int, state: dict | None = None) -> dict:
        optimiser = build_optimiser(layers, options)  # type: ignore[arg-type]
        if state is not None:
            optimiser.load_state_dict(state)
        for group in optimiser.param_groups:
            group["lr"] = 0.01
        for _ in range(steps):
            (layers(torch.ones(2, 4)) ** 2).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return optimiser.state_dict()

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    parts = copy.deepcopy(whole)
    options = Optimiser(kind="muon")
    trained(whole, options, 4)
    trained(parts, options, 2, trained(parts, options, 2))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    with pytest.raises(ValueError, match="optimiser.kind: the saved run has Muon and AdamW, this one AdamW"):
        build_optimiser(whole, Optimiser()).load_state_dict(trained(whole, options, 1))  # type: ignore[arg-type]


def test_a_resumed_run_has_its_own_options_and_each_parameter_its_own_state(network: SAM2Base):
    named = dict(network.named_parameters())
    for i, parameter in enumerate(named.values()):
        parameter.grad = torch.full_like(parameter, i + 1.0)
    written = build_optimiser(network, Optimiser())
    written.step()
    options = Optimiser(trunk_lr=0.5, layer_decay=0.9, weight_decay=0.1, betas=[0.8, 0.9])
    fresh = build_optimiser(network, options)
    before = [(group["lr_scale"], group["weight_decay"], group["betas"]) for group in fresh.param_groups]
    fresh.load_state_dict(written.state_dict())
    assert [(group["lr_scale"], group["weight_decay"], group["betas"]) for group in fresh.param_groups] == before
    assert len(before) > len(written.param_groups) and (0.5 * 0.9, 0.1, (0.8, 0.9)) in before
    (part,) = fresh.parts
    for i, parameter in enumerate(named.values()):
        torch.testing.assert_close(part.state[parameter]["exp_avg"], torch.full_like(parameter, 0.1 * (i + 1)))


def test_frozen_parameters_are_those_of_the_named_parts(network: SAM2Base):
    def frozen(*parts: str) -> set[str]:
        return frozen_parameters(network, Stage(freeze=list(parts)), 2)

    every = {name for name, _ in network.named_parameters()}
    assert frozen() == set()
    assert frozen("image_encoder.trunk") == {name for name in every if name.startswith("image_encoder.trunk.")}
    assert frozen("no_mem_embed", "obj_ptr_proj.layers.0") == {
        "no_mem_embed", "obj_ptr_proj.layers.0.weight", "obj_ptr_proj.layers.0.bias",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"stages\.2\.freeze: the network has no part 'image_enc'"):
        frozen("image_enc")
    with pytest.raises(ValueError, match=r"stages\.2\.freeze: nothing is left to train"):
        frozen(*(name.partition(".")[0] for name in every))


def test_the_trunk_learns_slower_the_deeper_a_layer_is(network: SAM2Base):
    settings = settings_by_name(network, Optimiser(layer_decay=0.5, trunk_lr=0.8))
    trunk = "image_encoder.trunk."
    assert settings[f"{trunk}blocks.7.attn.qkv.weight"][0] == pytest.approx(0.8 * 0.5)
    assert settings[f"{trunk}blocks.0.attn.qkv.weight"][0] == pytest.approx(0.8 * 0.5**8)
    assert settings[f"{trunk}patch_embed.proj.weight"][0] == pytest.approx(0.8 * 0.5**9)
    assert settings[f"{trunk}pos_embed"][0] == settings[f"{trunk}pos_embed_window"][0] == 0.8
    assert settings["image_encoder.neck.convs.0.conv.weight"][0] == 1.0


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (3, 1.0), (4, 1.0), (9, 0.6), (14, 0.2), (99, 0.2)])
def test_the_learning_rate_warms_up_and_falls_along_a_cosine(step: int, expected: float):
    stage = Stage(steps=14, frames=2, clips=1, lr=1.0, lr_end=0.2, warmup=4)
    assert learning_rate(stage, step) == pytest.approx(expected)


def test_averages_follow_quickly_at_first_and_slowly_later():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = AveragedWeights(layer, 0.9)
    nn.init.ones_(layer.weight)
    average.update(layer, 0)
    assert average.values["weight"].item() == pytest.approx(1 - 1 / 10)
    average.update(layer, 1000)
    assert average.values["weight"].item() == pytest.approx(0.9 * 0.9 + 0.1)


def test_without_averaging_the_last_weights_count():
    layer = nn.Linear(1, 1, bias=False)
    average = AveragedWeights(layer, 0.0)
    nn.init.constant_(layer.weight, 5.0)
    average.update(layer, 0)
    assert torch.equal(average.values["weight"], layer.weight)

"""Recipes: what is written, what overrides change, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from sam2.build_sam import build_sam2
from training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "training"
MINIMAL = "model: nano\nstages:\n  - {steps: 5, frames: 2, clips: 1, lr: 0.1, lr_end: 0.01}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_the_shipped_recipes_are_valid():
    own = sorted(RECIPES.glob("nano*.yaml"))
    assert len(own) == 6 and all(load_recipe(path).stages for path in own)
    finetune = load_recipe(RECIPES / "finetune.yaml", ["data.0.root=somewhere"])
    assert finetune.stages[0].steps == 200
    assert finetune.validation.source is not None and finetune.validation.source.root == "somewhere"


def test_a_recipe_for_metas_checkpoints_is_gentle_and_trains_on_the_users_clips_alone():
    recipe = load_recipe(RECIPES / "finetune_meta.yaml", ["data.0.root=somewhere"])
    assert [source.kind for source in recipe.data] == ["davis"]
    assert recipe.stages[0].lr <= 1e-5 and recipe.optimiser.clip_norm <= 0.1
    network = build_sam2(
        recipe.model, device="cpu", mode="train", apply_postprocessing=False,
        hydra_overrides_extra=recipe.model_overrides,
    )  # fmt: skip
    rates = [cast(Any, block).drop_path.drop_prob for block in network.image_encoder.trunk.blocks[1:]]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.1)


def test_a_recipe_without_its_folder_says_which_key_is_missing():
    with pytest.raises(ValueError, match="root"):
        load_recipe(RECIPES / "finetune.yaml")


def test_overrides_change_nested_keys_and_items_of_lists(minimal: Path):
    recipe = load_recipe(minimal, ["stages.0.lr=0.5", "seed=7", "optimiser.ema=0", "init_from=null"])
    assert (recipe.stages[0].lr, recipe.seed, recipe.optimiser.ema, recipe.init_from) == (0.5, 7, 0.0, None)
    assert recipe.stages[0].steps == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.learning_rate=1", "learning_rate"),
        ("sed=1", "sed"),
        ("seed=one", "seed"),
        ("seed", "must be key=value"),
        ("stages=[]", "stages must list at least one stage"),
        ("stages.0.frames=0", "stages.0.frames must be at least 1, got 0"),
        ("stages.0.repeat=0", "stages.0.repeat must be at least 1, got 0"),
        ("stages.0.objects=0", "stages.0.objects must be at least 1 or null, got 0"),
        ("stages.0.frames=1", "stages.0.prompts.mask must be 0 for single frames"),
        ("stages.0.lead=-1", "stages.0.lead must be at least 0, got -1"),
        ("stages.0.lead=1", "stages.0.lead must leave a frame to train after it, got 1 of 2 frames"),
        ("stages.0.prompts.box=-1", "must be shares"),
        ("data=[{kind: films}]", "data.0.kind must be drawn, davis or sav, got 'films'"),
        ("data=[{kind: davis}]", "data.0.root"),
        ("precision=float8", "precision must be auto, bfloat16 or float32"),
        ("stages.0.image_size=100", "stages.0.image_size must be at least 64 and divisible by 32, got 100"),
        ("optimiser.kind=sgd", "optimiser.kind must be adamw or muon, got 'sgd'"),
        ("loss.stride=3", "loss.stride must be 1, 2 or 4, got 3"),
        ("seed=[", "while parsing"),
        ("data=[{kind: drawn, weight: 0}]", "data: no source has a weight above 0"),
        ("data=[{kind: drawn, weight: -1}]", "data.0.weight must be at least 0, got -1"),
        ("data=[{kind: sav, root: there, max_stride: 0}]", "data.0.max_stride must be at least 1, got 0"),
        ("data=[{kind: drawn, packs: 1.5}]", "data.0.packs must be from 0 to 1, got 1.5"),
        ("data=[{kind: drawn, strings: -0.5}]", "data.0.strings must be from 0 to 1, got -0.5"),
        ("data=[{kind: davis, root: x, strings: 0.5}]", "data.0.strings is for drawn clips, got 0.5 for 'davis'"),
        ("data=[{kind: sav, root: x, packs: 0.5}]", "data.0.packs is for drawn clips, got 0.5 for 'sav'"),
        ("data=[{kind: drawn, search_factor: 0.5}]", "data.0.search_factor must be a number of 1 or more, or None"),
        (
            "validation.source={kind: davis, root: x, search_factor: 2}",
            "validation.source.search_factor must be null: whole frames are measured",
        ),
        ("validation.source={kind: films}", "validation.source.kind must be davis or sav, got 'films'"),
        ("validation.source={kind: davis}", "validation.source.root, the folder of the davis clips, is missing"),
        ("validation.clips=0", "validation.clips must be at least 1, got 0"),
        ("validation.frames=1", "validation.frames must be at least 2, got 1"),
        ("log_every=0", "log_every must be at least 1, got 0"),
        ("workers=-1", "workers must be at least 0, got -1"),
        ("threads=0", "threads must be at least 1, got 0"),
        ("stages.0.lr=-1", "stages.0.lr must be at least 0, got -1"),
        ("stages.0.lr=.nan", "stages.0.lr must be at least 0, got nan"),
        ("stages.0.prompts.max_corrections=0", "stages.0.prompts.max_corrections must be at least 1, got 0"),
        ("stages.0.prompts.correction=-1", "stages.0.prompts.correction must be from 0 to 1, got -1"),
        ("stages.0.prompts.prompted_frames=2", "prompted_frames must leave frames to track, got 2 of 2 frames$"),
        (
            "stages=[{steps: 1, frames: 4, lead: 2, clips: 1, lr: 1, lr_end: 0, prompts: {prompted_frames: 2}}]",
            "prompted_frames must leave frames to track, got 2 of 2 frames outside of the lead",
        ),
        ("validation.difficulty=2", "validation.difficulty must be from 0 to 1, got 2"),
        ("loss.dice=-1", "loss.dice must be at least 0, got -1"),
        ("optimiser.betas=[0.9]", "optimiser.betas must be two numbers"),
        ("optimiser.ema=1.5", "optimiser.ema must be from 0 to below 1, got 1.5"),
        ("optimiser.clip_norm=-1", "optimiser.clip_norm must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_named(minimal: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_recipe(minimal, [override])


def test_search_regions_need_frames_to_track(minimal: Path):
    single = ["stages.0.frames=1", "stages.0.prompts.mask=0"]
    assert load_recipe(minimal, single).stages[0].frames == 1
    with pytest.raises(ValueError, match=r"stages.0.frames must be more than 1 for sources with search_factor"):
        load_recipe(minimal, [*single, "data=[{kind: drawn, search_factor: 1.25}]"])
    unused = "data=[{kind: drawn}, {kind: drawn, search_factor: 1.25, weight: 0}]"
    assert load_recipe(minimal, [*single, unused]).data[1].weight == 0
    again = ["stages.0.frames=4", "stages.0.prompts.prompted_frames=2"]
    with pytest.raises(ValueError, match=r"stages.0.prompts.prompted_frames must be 1 for sources with search_factor"):
        load_recipe(minimal, [*again, "data=[{kind: drawn, search_factor: 1.25}]"])


def test_a_source_may_be_left_out_and_what_is_not_measured_may_be_empty(minimal: Path):
    recipe = load_recipe(minimal, ["data=[{kind: drawn}, {kind: drawn, weight: 0}]", "validation={every: 0, clips: 0}"])
    assert recipe.data[1].weight == 0 and recipe.validation.clips == 0


def test_a_recipe_that_is_no_yaml_is_named(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("stages: [\n")
    with pytest.raises(ValueError, match=r"recipe '.*r.yaml': while parsing"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        load_recipe(tmp_path / "none.yaml")

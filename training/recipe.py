"""What a training run is: a YAML file, read into these records. Defaults are here; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sam2.modeling.search_region import check_search_factor

PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass
class DataSource:
    """Where clips come from, and how often."""

    kind: str = MISSING  # "drawn", "davis" or "sav"
    weight: float = 1.0  # share of the clips, against the weights of the other sources
    root: str | None = None  # folder of "davis" and "sav"
    split: str | None = None  # "davis": name of the list of sequences; None takes every annotated one, as "sav" does
    augment: bool = True  # flip, crop and colours of real clips, no crop in regions; drawn clips vary by themselves
    max_stride: int = 3  # "davis" and "sav": at most every n-th frame is taken
    search_factor: float | None = None  # one object a clip, given by its mask, seen in `regions` so many times as long
    packs: float = 0.0  # "drawn": chance that something sits on a labelled actor, as a rucksack, mostly an object too
    strings: float = 0.0  # "drawn": chance that thin lines, an object too, hang on a labelled actor or by themselves


@dataclass
class PromptMix:
    """How objects are prompted, on the first frame and perhaps others, and how answers are corrected.

    Shares of objects, then of steps.
    """

    mask: float = 0.6
    box: float = 0.2
    click: float = 0.2
    prompted_frames: int = 1  # the first one, and by chance up to this many in all, are prompted before tracking
    correction: float = 0.3  # share of steps in which later frames get corrective clicks
    corrected_frames: int = 1  # at most so many of them; those that are prompted already are left out
    first_correction: float = 0.3  # share of steps in which boxes and clicks on prompted frames are corrected at once
    max_corrections: int = 3  # clicks on a corrected frame: 1 to this many
    practice: float = 0.0  # share of steps in which a box and a click are tried on a frame, beside tracking


@dataclass
class LossWeights:
    """SAM 2, appendix D: the weights of the parts of the loss."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    presence: float = 1.0
    stride: int = 2  # pixels of the input per pixel of the loss: 1, 2 or 4


@dataclass
class Stage:
    """A stretch of the run with one kind of clip. The learning rate warms up, then falls along a cosine."""

    steps: int = MISSING
    frames: int = MISSING  # per clip
    lead: int = 0  # of them, those after the first that are tracked, not trained; the rest starts from their masks
    clips: int = MISSING  # per step and process; each is its own share of a step with `accumulate`
    lr: float = MISSING
    lr_end: float = MISSING
    warmup: int = 100  # steps
    image_size: int | None = None  # pixels of each side; None takes the model's own
    accumulate: int = 1  # forward and backward passes of `clips` clips per step
    repeat: int = 1  # times that each clip is trained on, all of them varied, also of sources that do not `augment`
    max_objects: int = 3  # per clip
    objects: int | None = None  # per forward pass, see `exactly`: on a GPU sizes that do not change save time
    freeze: list[str] = field(default_factory=list)  # parts that stay as they are, e.g. "image_encoder.trunk"
    difficulty: list[float] = field(default_factory=lambda: [0.0, 1.0])  # of drawn clips, lowest and highest
    prompts: PromptMix = field(default_factory=PromptMix)


@dataclass
class Optimiser:
    """How gradients become steps."""

    kind: str = "adamw"  # or "muon": Muon for matrices (Jordan et al. 2024), AdamW for the rest
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.05  # of matrices; vectors, norms and embeddings have none
    layer_decay: float = 1.0  # the learning rate of a trunk block is this much lower than that of the block after it
    trunk_lr: float = 1.0  # factor on the learning rate of the whole trunk
    clip_norm: float = 1.0  # gradients are scaled down to this norm; 0 leaves them as they are
    ema: float = 0.999  # decay of the averaged weights, which are the ones exported; 0 exports the last weights


@dataclass
class Validation:
    """How often the averaged weights are measured, and on what: drawn clips or a folder."""

    every: int = 250  # steps; 0 never
    clips: int = 12  # at most; of a folder the beginnings of as many videos
    frames: int = 8
    difficulty: float = 0.5  # of drawn clips
    source: DataSource | None = None  # a folder, of which each video counts once; None: drawn clips held out by seed


@dataclass
class Recipe:
    """A whole run."""

    model: str = MISSING  # config of the network, by name or file
    model_overrides: list[str] = field(default_factory=list)  # Hydra overrides of that config
    init_from: str | None = None  # checkpoint to start from; None starts from random weights
    positional_heads: int = 0  # decoder heads that start out attending by position, see `initialisation`; 0 to 8
    seed: int = 0
    device: str | None = None  # None takes a GPU if there is one
    precision: str = "auto"  # of the arithmetic: "bfloat16", "float32", or what suits the device; weights are float32
    workers: int = 1  # processes that prepare clips, for each training process
    threads: int | None = None  # of torch on the CPU
    recompute: bool = False  # the trunk's activations, instead of keeping them: far less memory, and more time
    save_minutes: float = 3.0
    log_every: int = 10  # steps
    export_float16: bool = False  # halve the exported checkpoint
    data: list[DataSource] = field(default_factory=lambda: [DataSource(kind="drawn")])
    stages: list[Stage] = MISSING
    loss: LossWeights = field(default_factory=LossWeights)
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: Validation = field(default_factory=Validation)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `key=value`, e.g. "seed=3", "stages.0.steps=100".

    Raises:
        FileNotFoundError: no such file. ValueError: an unknown key, a value of another type, a missing or wrong one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"recipe {str(path)!r} is not there")
    try:
        written = OmegaConf.load(path)
        for override in overrides:
            _apply(written, override)
        recipe = cast(Recipe, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), written)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"recipe {str(path)!r}: {error}") from error
    _check(recipe)
    return recipe


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that was saved, perhaps by an earlier version, with the defaults of what is new since."""
    try:
        return asdict(cast(Recipe, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), dict(saved)))))
    except OmegaConfBaseException:  # it has a key that is no longer there
        return dict(saved)


def _apply(config: Any, override: str) -> None:
    """Apply `key=value`; the value is YAML."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} must be key=value")
    parsed = cast(DictConfig, OmegaConf.create(f"value: {value}"))
    OmegaConf.update(config, key, parsed.value, merge=True)


def _check(recipe: Recipe) -> None:
    """Raise ValueError for what would break a run later, or go unheeded."""
    if not recipe.stages:
        raise ValueError("stages must list at least one stage")
    if not recipe.data:
        raise ValueError("data must list at least one source")
    for i, source in enumerate(recipe.data):
        _check_source(f"data.{i}", source, ("drawn", "davis", "sav"))
    for i, stage in enumerate(recipe.stages):
        _check_stage(f"stages.{i}", stage)
        if any(source.weight > 0 and source.search_factor is not None for source in recipe.data):
            _check_regions(f"stages.{i}", stage)
    if recipe.validation.source is not None:
        _check_source("validation.source", recipe.validation.source, ("davis", "sav"))
        if recipe.validation.source.search_factor is not None:
            raise ValueError("validation.source.search_factor must be null: whole frames are measured")
    _check_bounds("", recipe, {"workers": 0, "save_minutes": 0, "log_every": 1})
    if recipe.threads is not None:
        _check_bounds("", recipe, {"threads": 1})
    if not any(source.weight > 0 for source in recipe.data):
        raise ValueError("data: no source has a weight above 0")
    _check_bounds("validation.", recipe.validation, {"every": 0})
    if recipe.validation.every > 0:
        _check_bounds("validation.", recipe.validation, {"clips": 1, "frames": 2})
        _check_shares("validation.", recipe.validation, ("difficulty",))
    _check_bounds("loss.", recipe.loss, {"focal": 0, "dice": 0, "iou": 0, "presence": 0})
    _check_optimiser(recipe.optimiser)
    if recipe.precision not in PRECISIONS:
        raise ValueError(f"precision must be auto, bfloat16 or float32, got {recipe.precision!r}")
    if recipe.loss.stride not in (1, 2, 4):
        raise ValueError(f"loss.stride must be 1, 2 or 4, got {recipe.loss.stride}")


def _check_bounds(prefix: str, record: Any, least: Mapping[str, float]) -> None:
    for name, bound in least.items():
        if not getattr(record, name) >= bound:  # not a number is refused as well
            raise ValueError(f"{prefix}{name} must be at least {bound}, got {getattr(record, name)}")


def _check_shares(prefix: str, record: Any, names: Sequence[str]) -> None:
    for name in names:
        if not 0 <= getattr(record, name) <= 1:
            raise ValueError(f"{prefix}{name} must be from 0 to 1, got {getattr(record, name)}")


def _check_source(place: str, source: DataSource, kinds: Sequence[str]) -> None:
    if source.kind not in kinds:
        raise ValueError(f"{place}.kind must be {', '.join(kinds[:-1])} or {kinds[-1]}, got {source.kind!r}")
    if source.kind != "drawn" and not source.root:
        raise ValueError(f"{place}.root, the folder of the {source.kind} clips, is missing")
    _check_bounds(f"{place}.", source, {"max_stride": 1, "weight": 0})
    _check_shares(f"{place}.", source, ("packs", "strings"))
    for name in ("packs", "strings"):
        if (chance := getattr(source, name)) > 0 and source.kind != "drawn":
            raise ValueError(f"{place}.{name} is for drawn clips, got {chance} for {source.kind!r}")
    try:
        check_search_factor(source.search_factor)
    except ValueError as error:
        raise ValueError(f"{place}.{error}") from error


def _check_stage(place: str, stage: Stage) -> None:
    least = dict.fromkeys(("steps", "frames", "clips", "accumulate", "repeat", "max_objects"), 1)
    _check_bounds(f"{place}.", stage, {**least, "lr": 0, "lr_end": 0, "warmup": 0, "lead": 0})
    if stage.lead and stage.lead > stage.frames - 2:
        raise ValueError(
            f"{place}.lead must leave a frame to train after it, got {stage.lead} of {stage.frames} frames"
        )
    if stage.objects is not None and stage.objects < 1:
        raise ValueError(f"{place}.objects must be at least 1 or null, got {stage.objects}")
    if stage.image_size is not None and (stage.image_size < 64 or stage.image_size % 32):
        raise ValueError(f"{place}.image_size must be at least 64 and divisible by 32, got {stage.image_size}")
    if len(stage.difficulty) != 2 or not 0 <= stage.difficulty[0] <= stage.difficulty[1] <= 1:
        raise ValueError(f"{place}.difficulty must be two numbers from 0 to 1, got {stage.difficulty}")
    mix = stage.prompts
    if min(mix.mask, mix.box, mix.click) < 0 or mix.mask + mix.box + mix.click <= 0:
        raise ValueError(f"{place}.prompts: mask, box and click must be shares, got {mix}")
    _check_bounds(f"{place}.prompts.", mix, {"max_corrections": 1, "prompted_frames": 1, "corrected_frames": 1})
    _check_shares(f"{place}.prompts.", mix, ("correction", "first_correction", "practice"))
    if mix.mask > 0 and stage.frames == 1:
        raise ValueError(f"{place}.prompts.mask must be 0 for single frames: a given mask leaves nothing to learn")
    trained = stage.frames - stage.lead
    if mix.prompted_frames > 1 and trained <= mix.prompted_frames:
        raise ValueError(
            f"{place}.prompts.prompted_frames must leave frames to track, got {mix.prompted_frames} of {trained} frames"
            f"{' outside of the lead' if stage.lead else ''}"
        )


def _check_regions(place: str, stage: Stage) -> None:
    """Raise ValueError where what is seen in search regions would not be prompted and tracked as in use."""
    if stage.frames == 1:
        raise ValueError(
            f"{place}.frames must be more than 1 for sources with search_factor: their objects are prompted by their "
            "masks, which leaves nothing to learn of single frames"
        )
    if stage.prompts.prompted_frames > 1:
        raise ValueError(
            f"{place}.prompts.prompted_frames must be 1 for sources with search_factor, got "
            f"{stage.prompts.prompted_frames}: a frame that is prompted again has a region of its own"
        )


def _check_optimiser(options: Optimiser) -> None:
    if options.kind not in ("adamw", "muon"):
        raise ValueError(f"optimiser.kind must be adamw or muon, got {options.kind!r}")
    if len(options.betas) != 2 or not all(0 <= beta < 1 for beta in options.betas):
        raise ValueError(f"optimiser.betas must be two numbers from 0 to below 1, got {options.betas}")
    if not 0 <= options.ema < 1:
        raise ValueError(f"optimiser.ema must be from 0 to below 1, got {options.ema}")
    least = {"weight_decay": 0, "layer_decay": 0, "trunk_lr": 0, "clip_norm": 0}
    _check_bounds("optimiser.", options, least)

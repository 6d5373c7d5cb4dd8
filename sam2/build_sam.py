"""Build models from configs and checkpoints. Where an app has set up Hydra, its own configs come first; Hydra's global
state is read and never changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigSource
from hydra.utils import instantiate
from iopath.common.file_io import HTTPURLHandler, PathManager
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from sam2.modeling.precision import resolve_dtype
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.search_region import check_search_factor
from sam2.track_guard import TrackGuard, check_guard

logger = logging.getLogger(__name__)

Config = str | Path | Mapping[str, Any] | DictConfig | None


class Release(NamedTuple):
    """A published model: what it is called, here and elsewhere."""

    short_name: str
    config_file: str
    checkpoint: str
    hub_id: str | None


def _meta(generation: str, short: str, size: str, long: str) -> Release:
    return Release(
        short_name=f"{generation}_hiera_{short}",
        config_file=f"configs/{generation}/{generation}_hiera_{short}.yaml",
        checkpoint=f"{generation}_hiera_{long}.pt",
        hub_id=f"facebook/{generation}-hiera-{size}",
    )


_SIZES = (
    ("t", "tiny", "tiny"),
    ("s", "small", "small"),
    ("b+", "base-plus", "base_plus"),
    ("l", "large", "large"),
)
EMBEDDED = Release(
    "sam2.1_hiera_nano", "configs/sam2.1/sam2.1_hiera_nano.yaml", "sam2.1_hiera_nano.pt", hub_id=None
)  # fmt: skip
RELEASES = (*(_meta(g, *size) for g in ("sam2", "sam2.1") for size in _SIZES), EMBEDDED)

HF_MODEL_ID_TO_FILENAMES = {r.hub_id: (r.config_file, r.checkpoint) for r in RELEASES if r.hub_id is not None}

_STABLE_MASKS = (
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
)
_CLEAN_VIDEO_MASKS = ("++model.binarize_mask_from_pts_for_mem_enc=true", "++model.fill_hole_area=8")


# Builders


def build_sam2(
    config_file: Config = None, ckpt_path: str | Path | None = None, device: str | torch.device | None = None,
    mode: str = "eval", hydra_overrides_extra: Sequence[str] = (), apply_postprocessing: bool = True,
    *, dtype: str | torch.dtype | None = None, image_size: int | None = None, **kwargs: Any,
) -> SAM2Base:  # fmt: skip
    """Build the network for images.

    Args:
        config_file: a name ("tiny", "sam2.1_hiera_l", "configs/sam2.1/sam2.1_hiera_l.yaml"), a YAML file, a dict or an
            OmegaConf. A name is first looked for where the caller's own Hydra looks, if they initialised it. None,
            with no checkpoint either, gives the small embedded model and its weights.
        ckpt_path: a `.pt` or `.safetensors` file, or its http(s) address; None leaves the weights random.
        device: where the model goes; None takes CUDA, else MPS, else the CPU.
        mode: "eval" switches dropout off; anything else leaves the model in training mode.
        hydra_overrides_extra: Hydra overrides such as "++model.image_size=512"; they win over all other arguments.
        apply_postprocessing: replace an unstable single mask by the best of several.
        dtype: "float32", "bfloat16" or "float16" for the arithmetic, "auto" for bfloat16 where the device computes in
            it and float32 elsewhere; None follows the caller's autocast.
        image_size: side, in pixels divisible by 32, of the square that frames are resized to; None takes the config's.
            A larger one sees smaller things and takes longer, a smaller one is faster.

    Raises:
        TypeError: an unknown keyword. ValueError, FileNotFoundError: a config or checkpoint that is not there, or an
            `image_size` that is no size.
        RuntimeError: a checkpoint whose weights are not those of the config.
    """
    defaults = _STABLE_MASKS if apply_postprocessing else ()
    return _build(config_file, ckpt_path, device, mode, defaults, hydra_overrides_extra, dtype, image_size, kwargs)


def build_sam2_video_predictor(
    config_file: Config = None, ckpt_path: str | Path | None = None, device: str | torch.device | None = None,
    mode: str = "eval", hydra_overrides_extra: Sequence[str] = (), apply_postprocessing: bool = True,
    vos_optimized: bool = False, *, dtype: str | torch.dtype | None = None, image_size: int | None = None,
    search_factor: float | None = None, guard: TrackGuard | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Build the network for videos, a `SAM2VideoPredictor`.

    Args:
        apply_postprocessing: as in `build_sam2`; also fill holes of up to 8 low-res pixels, and let prompted masks
            enter memory as 0 or 1.
        vos_optimized: compile the network's parts (`SAM2VideoPredictorVOS`).
        search_factor: look for each object in a square of the frame around it, so many times as long as the longer
            side of its box, 1 or more; None takes the config's, which is to look everywhere unless it says otherwise.
            Small objects are seen larger for the time of a whole frame, but each object takes that time.
        guard: when masks are doubted, and not remembered (`TrackGuard`); None takes the config's, which is never
            unless it says otherwise. Anything else is a TypeError.

    Other arguments and errors: as in `build_sam2`.
    """
    defaults = ["++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor"]
    if vos_optimized:
        defaults = [
            "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictorVOS",
            "++model.compile_image_encoder=True",
        ]
    if apply_postprocessing:
        defaults += [*_STABLE_MASKS, *_CLEAN_VIDEO_MASKS]
    if search_factor is not None:
        defaults.append(f"++model.search_factor={check_search_factor(search_factor)}")
    check_guard(guard)
    model = _build(config_file, ckpt_path, device, mode, defaults, hydra_overrides_extra, dtype, image_size, kwargs)
    if guard is not None:
        model.guard = guard
    return model


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2Base:
    """`build_sam2` from a Hugging Face id, a folder or a checkpoint file (see `find_pretrained`)."""
    config_file, checkpoint, kwargs = find_pretrained(model_id, kwargs)
    return build_sam2(config_file=config_file, ckpt_path=checkpoint, **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> Any:
    """`build_sam2_video_predictor` from a Hugging Face id, a folder or a checkpoint file (see `find_pretrained`)."""
    config_file, checkpoint, kwargs = find_pretrained(model_id, kwargs)
    return build_sam2_video_predictor(config_file=config_file, ckpt_path=checkpoint, **kwargs)


def _build(
    config_file: Config, ckpt_path: str | Path | None, device: str | torch.device | None, mode: str,
    defaults: Sequence[str], extra: Sequence[str], dtype: str | torch.dtype | None, image_size: int | None,
    unknown: Mapping[str, Any],
) -> Any:  # fmt: skip
    """Build what `defaults` and then the user's `extra` overrides make of a config; `unknown` keywords are an error."""
    if unknown:
        names = ", ".join(sorted(unknown))
        hint = "; the checkpoint's name is ckpt_path" if "checkpoint" in unknown else ""
        raise TypeError(f"unknown keyword {names}: options of the model go into hydra_overrides_extra{hint}")
    if config_file is None:
        config_file = find_config(EMBEDDED.config_file)
        ckpt_path = packaged_file("checkpoints", EMBEDDED.checkpoint) if ckpt_path is None else ckpt_path
    if isinstance(extra, str):
        raise TypeError(f"hydra_overrides_extra must be a list of strings, got the string {extra!r}")
    if image_size is not None:
        defaults = [*defaults, f"++model.image_size={check_image_size(image_size)}"]
    config = _compose(config_file, [*defaults, *extra])
    described = config.get("model") or {}  # the overrides made a section of that name in any case
    if "image_encoder" not in described and str(described.get("_target_", "sam2.")).startswith("sam2."):
        raise ValueError(f"config_file describes no model: `model.image_encoder` is missing; it holds {list(config)}")
    device = torch.device(pick_device() if device is None else device)
    compute_dtype = resolve_dtype(dtype, device)
    model = instantiate(config.model, _recursive_=True)
    if compute_dtype is not None:
        model.compute_dtype = compute_dtype
    _load_checkpoint(model, ckpt_path)
    model = model.to(device)
    return model.eval() if mode == "eval" else model


def check_image_size(image_size: int) -> int:
    """The size, if the network can take frames of it. Raises ValueError otherwise."""
    if not isinstance(image_size, Integral) or isinstance(image_size, bool) or image_size < 32 or image_size % 32:
        raise ValueError(f"image_size must be a whole number of pixels divisible by 32, got {image_size!r}")
    return int(image_size)


def dtype_name(dtype: str, device: torch.device) -> str:
    """What a builder's `dtype` comes to on a device: "float32", "bfloat16" or "float16"."""
    return str(resolve_dtype(dtype, device)).removeprefix("torch.")


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# Configs


def _compose(config_file: Config, overrides: Sequence[str]) -> DictConfig:
    """A config with overrides: as the caller's own Hydra makes it, where that knows the name, else by `load_config`."""
    name = str(config_file)
    is_name = isinstance(config_file, (str, Path)) and not Path(config_file).is_absolute()
    if not is_name or not any(source.is_config(name) for source in _own_sources()):
        return apply_overrides(load_config(config_file), overrides)
    try:
        config = compose(name, overrides=list(overrides))
    except HydraException as error:
        reason = str(error) or error.__cause__
        raise ValueError(f"config_file {name!r} of your Hydra search path, with {list(overrides)}: {reason}") from error
    OmegaConf.resolve(config)
    return config


def _own_sources() -> list[ConfigSource]:
    """Where the caller's own Hydra looks for configs; nowhere without one."""
    hydra = GlobalHydra.instance()
    return [each for each in hydra.config_loader().get_sources() if each.available()] if hydra.is_initialized() else []


def packaged_file(*parts: str) -> Path:
    """A file that comes with the package: inside it once installed, beside it in a source tree."""
    package = Path(__file__).parent
    inside, beside = package.joinpath(*parts), package.parent.joinpath(*parts)
    return beside if beside.exists() and not inside.exists() else inside


def _aliases() -> dict[str, Release]:
    aliases = {}
    for release in RELEASES:
        aliases[release.short_name] = release
        aliases[release.short_name.replace("hiera_b+", "hiera_base_plus")] = release
        aliases[release.checkpoint.removesuffix(".pt")] = release
    for word, short in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"), ("nano", "nano")):
        aliases[word] = aliases[f"sam2.1_hiera_{short}"]
    return aliases


def find_config(name: str | Path) -> Path:
    """The YAML file of a config's name, packaged path or own path, whatever the caller's Hydra has.

    Raises:
        FileNotFoundError: no such file; it lists the names.
    """
    text = str(name)
    aliases = _aliases()
    if not Path(text).is_file() and text.removesuffix(".yaml") in aliases:
        text = aliases[text.removesuffix(".yaml")].config_file
    with_suffix = text if text.endswith((".yaml", ".yml")) else f"{text}.yaml"
    if not Path(with_suffix).is_absolute():
        for candidate in (packaged_file(with_suffix), packaged_file("configs", with_suffix)):
            if candidate.is_file():
                return candidate
    if Path(with_suffix).is_file():
        return Path(with_suffix)
    names = ", ".join(sorted(aliases))
    own = [source.full_path() for source in _own_sources() if source.provider not in ("hydra", "schema")]
    elsewhere = f", nor in your Hydra search path {', '.join(own)}" if own else ""
    raise FileNotFoundError(f"config_file {str(name)!r} is neither a file nor one of {names}{elsewhere}")


def load_config(config_file: Config) -> DictConfig:
    """A config from a name, a file, a dict or an OmegaConf; the caller's object is never changed.

    Raises:
        FileNotFoundError: no such file or name. TypeError, ValueError: not a mapping, or one that composes others.
    """
    if isinstance(config_file, (str, Path)):
        config = OmegaConf.load(find_config(config_file))
    elif isinstance(config_file, (Mapping, DictConfig)):
        config = OmegaConf.create(OmegaConf.to_container(OmegaConf.create(config_file)))  # type: ignore[arg-type]
    else:
        raise TypeError(f"config_file must be a name, a path, a dict or an OmegaConf, got {type(config_file).__name__}")
    if not isinstance(config, DictConfig):
        raise ValueError(f"config_file {config_file!r} must hold a mapping")
    if "defaults" in config:
        raise ValueError("config_file has a `defaults` list: compose it with Hydra and pass the result")
    return config


def apply_overrides(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply Hydra overrides, in Hydra's own grammar: `key=value`, `+key=value`, `++key=value`, `~key`.

    Raises:
        ValueError: a string that is no override, a missing key without `+`, or an existing one with a single `+`.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except Exception as error:  # the parser's error types differ between versions
        raise ValueError(f"hydra_overrides_extra {list(overrides)}: {error}") from error
    for override in parsed:
        _apply_override(config, override)
    OmegaConf.resolve(config)
    return config


def _apply_override(config: DictConfig, override: Override) -> None:
    text, key = override.input_line, override.key_or_group
    missing = object()
    exists = OmegaConf.select(config, key, default=missing) is not missing
    if override.is_sweep_override():
        raise ValueError(f"hydra_overrides_extra {text!r} is a sweep: give one value")
    if override.is_delete():
        if not exists:
            raise ValueError(f"hydra_overrides_extra {text!r}: the config has no {key!r}")
        parent, _, leaf = key.rpartition(".")
        del (OmegaConf.select(config, parent) if parent else config)[leaf]
        return
    if not exists and not (override.is_add() or override.is_force_add()):
        raise ValueError(f"hydra_overrides_extra {text!r}: the config has no {key!r}; write ++{key}=... to add it")
    if exists and override.is_add():
        raise ValueError(f"hydra_overrides_extra {text!r}: the config has {key!r} already; write ++{key}=...")
    OmegaConf.update(config, key, override.value(), merge=True, force_add=True)


# Weights


def read_state_dict(ckpt_path: str | Path) -> dict[str, Tensor]:
    """Weights by name from a `.pt` (`{"model": weights}`, or the weights themselves) or `.safetensors` file or address.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a file that holds no weights.
    """
    path = Path(_local_copy(str(ckpt_path)))
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path {str(ckpt_path)!r} is not there; checkpoints/download_ckpts.sh downloads Meta's checkpoints"
        )
    read = _safetensors_reader() if path.suffix == ".safetensors" else _read_pickle
    try:
        content = read(path)
    except Exception as error:  # pickle, zip, torch and safetensors each have their own
        raise ValueError(f"ckpt_path {str(ckpt_path)!r} is not a readable checkpoint: {error}") from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"ckpt_path {str(ckpt_path)!r} holds no weights: expected {{'model': name -> tensor}}")
    return weights


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors_reader() -> Callable[[Path], dict[str, Tensor]]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError('reading .safetensors needs the extra: pip install "sam2[safetensors]"') from error
    return load_file


def _local_copy(ckpt_path: str) -> str:
    """A file's own path, or that of the cached download of an http(s) address."""
    if not ckpt_path.startswith(("http://", "https://")):
        return ckpt_path
    manager = PathManager()  # our own, so that the caller's registered handlers stay as they are
    manager.register_handler(HTTPURLHandler())
    try:
        return manager.get_local_path(ckpt_path)
    except OSError as error:
        raise FileNotFoundError(
            f"ckpt_path {ckpt_path!r} could not be downloaded ({error}); download it elsewhere and give the file's path"
        ) from error


def _load_checkpoint(model: nn.Module, ckpt_path: str | Path | None) -> None:
    """`load_weights`, nothing for None. The builders call it by upstream's name, under which others replace it."""
    if ckpt_path is not None:
        load_weights(model, ckpt_path)


def load_weights(model: nn.Module, ckpt_path: str | Path) -> None:
    """Load a checkpoint strictly. Raises RuntimeError listing what is missing, unexpected or of another shape."""
    put_weights(model, read_state_dict(ckpt_path), ckpt_path)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], ckpt_path: str | Path) -> None:
    """`load_weights` of a checkpoint that was read."""
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{name} (model {tuple(expected[name].shape)}, checkpoint {tuple(weights[name].shape)})"
            for name in sorted(expected.keys() & weights.keys())
            if expected[name].shape != weights[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise RuntimeError(f"ckpt_path {str(ckpt_path)!r} does not fit the config: {listed}")
    model.load_state_dict(dict(weights))
    logger.info("Loaded %d tensors from %s", len(weights), ckpt_path)


def _shorten(names: Sequence[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


# Hugging Face


class Pretrained(NamedTuple):
    """Where a pretrained model is, and the keywords that are left for its builder."""

    config_file: str
    checkpoint: str
    build_kwargs: dict[str, Any]


def find_pretrained(model_id: str, kwargs: Mapping[str, Any]) -> Pretrained:
    """Find a pretrained model's config and weights.

    Args:
        model_id: an id such as "facebook/sam2.1-hiera-large", a folder with one known checkpoint, or a checkpoint file
            under its published name.
        kwargs: `local_files_only`, `revision` and `cache_dir` for the hub; the rest is for the builder.

    Raises:
        ValueError: an id that is not known, or a file whose config cannot be told from its name.
        FileNotFoundError: the file is neither in the cache nor to be had.
    """
    rest = dict(kwargs)
    hub_options = {key: rest.pop(key) for key in ("local_files_only", "revision", "cache_dir") if key in rest}
    path = Path(model_id)
    if path.exists():
        config_file, checkpoint = _find_local(path)
        return Pretrained(rest.pop("config_file", config_file), checkpoint, rest)
    if model_id not in HF_MODEL_ID_TO_FILENAMES:
        raise ValueError(
            f"model_id {model_id!r} is neither a file, a folder nor one of {', '.join(HF_MODEL_ID_TO_FILENAMES)}"
        )
    config_file, filename = HF_MODEL_ID_TO_FILENAMES[model_id]
    return Pretrained(config_file, _download(model_id, filename, hub_options), rest)


def _hf_download(model_id: str) -> tuple[str, str]:
    """Config and downloaded checkpoint of a Hugging Face id: `find_pretrained` under upstream's name."""
    return find_pretrained(model_id, {})[:2]


def _find_local(path: Path) -> tuple[str, str]:
    """(config, checkpoint) of a checkpoint file, or of a folder that holds one."""
    by_stem = {r.checkpoint.removesuffix(".pt"): r for r in RELEASES}
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [f for f in files if f.suffix in (".pt", ".safetensors") and f.stem in by_stem]
    if len(found) != 1:
        raise ValueError(
            f"model_id {str(path)!r} must be or hold exactly one checkpoint named like {EMBEDDED.checkpoint}, "
            f"found {[f.name for f in found] or 'none'}; for another name use ckpt_path with config_file"
        )
    return by_stem[found[0].stem].config_file, str(found[0])


def _download(model_id: str, filename: str, options: Mapping[str, Any]) -> str:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError('loading from the Hugging Face hub needs the extra: pip install "sam2[hub]"') from error
    try:
        return hf_hub_download(repo_id=model_id, filename=filename, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"{filename} of {model_id} is not in the cache and could not be downloaded ({error}). Download "
            f"https://huggingface.co/{model_id}/resolve/main/{filename} elsewhere and pass the file as model_id"
        ) from error

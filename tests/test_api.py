"""Every public name, parameter and order of the original's, as recorded in shared/golden/api.json."""

import importlib
import inspect
import json

import pytest

CHANGED_DEFAULTS = {
    "device",  # None picks the device, where the original insists on CUDA
    "config_file",  # None is the embedded model
    "hydra_overrides_extra",  # an immutable empty default
    "compute_device",
}


def parameters(function) -> list[tuple[str, str, str | None]]:
    return [
        (p.name, p.kind.name, None if p.default is inspect.Parameter.empty else repr(p.default))
        for p in inspect.signature(function).parameters.values()
    ]


def load(cls, name: str):
    member = inspect.getattr_static(cls, name)
    return member.__func__ if isinstance(member, (classmethod, staticmethod)) else member


def assert_compatible(path: str, ours, wanted: list[list]) -> None:
    """Same parameters in the same order with the same defaults; more keyword-only ones may follow."""
    wanted_names = {name for name, *_ in wanted}
    found = [p for p in parameters(ours) if p[0] in wanted_names or p[1] != "KEYWORD_ONLY"]
    assert [p[:2] for p in found] == [tuple(w[:2]) for w in wanted], path
    for (name, _, default), (_, _, wanted_default) in zip(found, wanted, strict=True):
        if name not in CHANGED_DEFAULTS:
            assert default == wanted_default, f"{path}: {name}"


def test_public_names_and_parameters_are_the_originals(shared):
    api = json.loads((shared / "golden" / "api.json").read_text())
    for module_name, members in api.items():
        module = importlib.import_module(module_name)
        for name, member in members.items():
            ours = getattr(module, name, None)
            assert ours is not None, f"{module_name}.{name} is missing"
            if "function" in member:
                assert_compatible(f"{module_name}.{name}", ours, member["function"])
            if "class" not in member:
                continue
            for base in member["bases"]:
                assert base in {c.__name__ for c in ours.__mro__}, f"{module_name}.{name} must be a {base}"
            for prop in member["properties"]:
                assert isinstance(inspect.getattr_static(ours, prop), property), f"{name}.{prop}"
            for method, wanted in member["class"].items():
                if method == "__init__" or hasattr(ours, method):
                    assert_compatible(f"{module_name}.{name}.{method}", load(ours, method), wanted)
                else:
                    pytest.fail(f"{module_name}.{name}.{method} is missing")

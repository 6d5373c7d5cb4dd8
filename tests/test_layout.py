"""Who may import whom: the flow of data goes one way, and so do imports."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

ALLOWED = {  # a module, or a folder of them -> the parts of the package that it may import
    "sam2/__init__.py": set(),
    "sam2/modeling": {"sam2.modeling", "sam2.utils.misc", "sam2.build_sam"},
    "sam2/utils": {"sam2.utils"},
    "sam2/frame_skipping.py": {"sam2.utils"},
    "sam2/video_memory.py": {"sam2.modeling"},
    "sam2/state_views.py": {"sam2.modeling", "sam2.video_state"},
    "sam2/video_state.py": {
        "sam2.modeling", "sam2.utils", "sam2.frame_skipping", "sam2.video_memory", "sam2.state_views",
    },
    "sam2/track_guard.py": {"sam2.modeling"},
    "sam2/video_tracking.py": {"sam2.modeling", "sam2.utils", "sam2.track_guard", "sam2.video_state"},
    "sam2/upstream_hooks.py": {"sam2.modeling", "sam2.video_state", "sam2.video_tracking"},
    "sam2/video_propagation.py": {
        "sam2.modeling", "sam2.utils", "sam2.frame_skipping", "sam2.results", "sam2.video_memory", "sam2.video_state",
        "sam2.video_tracking",
    },
    "sam2/state_file.py": {
        "sam2.modeling", "sam2.utils", "sam2.frame_skipping", "sam2.video_memory", "sam2.video_state",
        "sam2.sam2_video_predictor",
    },
    "sam2/streaming.py": {
        "sam2.utils", "sam2.frame_skipping", "sam2.results", "sam2.video_state", "sam2.video_propagation",
        "sam2.sam2_video_predictor",
    },
    "sam2/build_sam.py": {"sam2.modeling", "sam2.track_guard"},
    "sam2/calibration.py": {
        "sam2.frame_skipping", "sam2.video_state", "sam2.video_propagation", "sam2.sam2_video_predictor",
        "sam2.modeling", "sam2.utils",
    },
    "sam2/vos_records.py": {"sam2.frame_skipping", "sam2.build_sam", "sam2.utils"},
    "sam2/results.py": {"sam2.frame_skipping", "sam2.utils"},
    "sam2/video_results.py": {"sam2.frame_skipping", "sam2.results", "sam2.utils", "sam2.exports"},
    "sam2/exports.py": {"sam2.results", "sam2.video_results", "sam2.vos_records", "sam2.utils"},
    "sam2/command_line.py": {"sam2.frame_skipping", "sam2.track_guard"},
    "sam2/track_prompts.py": {"sam2.utils"},
    "sam2/track_runs.py": {
        "sam2.frame_skipping", "sam2.results", "sam2.video_results", "sam2.exports", "sam2.vos_records",
        "sam2.track_prompts", "sam2.utils",
    },
    "sam2/track.py": {
        "sam2.frame_skipping", "sam2.sam2_video_predictor", "sam2.build_sam", "sam2.vos_records", "sam2.vos_runs",
        "sam2.track_prompts", "sam2.track_runs", "sam2.command_line",
    },
    "sam2/vos_runs.py": {
        "sam2.frame_skipping", "sam2.vos_records", "sam2.sam2_video_predictor", "sam2.build_sam", "sam2.utils",
        "sam2.track_guard",
    },
    "sam2/sam2_video_predictor.py": {
        "sam2.calibration", "sam2.modeling", "sam2.utils", "sam2.frame_skipping", "sam2.results", "sam2.video_state",
        "sam2.video_tracking", "sam2.video_propagation", "sam2.streaming", "sam2.state_file", "sam2.upstream_hooks",
        "sam2.build_sam", "sam2.track_guard",
    },
    "sam2/sam2_image_predictor.py": {"sam2.modeling", "sam2.utils", "sam2.build_sam"},
    "sam2/automatic_mask_generator.py": {
        "sam2.modeling", "sam2.utils", "sam2.sam2_image_predictor", "sam2.build_sam",
    },
}  # fmt: skip
LAZY_ONLY = {  # imported inside functions, where the layer below reaches up for one convenience
    "sam2/modeling": {"sam2.utils.misc", "sam2.build_sam"},
    "sam2/sam2_video_predictor.py": {"sam2.build_sam", "sam2.calibration", "sam2.streaming", "sam2.state_file"},
    "sam2/state_views.py": {"sam2.video_state"},
    "sam2/state_file.py": {"sam2.sam2_video_predictor"},
    "sam2/streaming.py": {"sam2.sam2_video_predictor"},
    "sam2/video_results.py": {"sam2.exports"},
    "sam2/sam2_image_predictor.py": {"sam2.build_sam"},
    "sam2/automatic_mask_generator.py": {"sam2.build_sam"},
}


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.split(".")[0] == "sam2" and name != "sam2._C"}


def is_within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts) or (name == "sam2" and bool(parts))


def rule_for(file: str) -> str:
    matching = [rule for rule in ALLOWED if file == rule or file.startswith(f"{rule}/")]
    assert matching, f"{file} is not in the layout: say in ALLOWED what it may import"
    return max(matching, key=len)


FILES = sorted(p.relative_to(PROJECT).as_posix() for p in (PROJECT / "sam2").rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_modules_import_only_what_lies_below_them(file):
    rule = rule_for(file)
    for name in imports(PROJECT / file, top_level_only=False):
        assert is_within(name, ALLOWED[rule]), f"{file} may not import {name}"
    for name in imports(PROJECT / file, top_level_only=True):
        assert not is_within(name, LAZY_ONLY.get(rule, set())), f"{file} may import {name} only inside a function"


@pytest.mark.parametrize("script", sorted(p.name for p in PROJECT.glob("*.py") if p.name != "setup.py"))
def test_scripts_do_nothing_when_imported(script):
    tree = ast.parse((PROJECT / script).read_text())
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    acting = [node for node in tree.body if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)]
    assert not acting, f"{script} calls something at import, line {acting[0].lineno if acting else 0}"

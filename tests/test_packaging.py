"""What an install carries, and that it can be used from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sam2

PROJECT = Path(__file__).resolve().parents[1]
PACKAGING = ["setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "NOTICE", "README.md"]
BUILD_OPTIONS = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
NANO = "sam2/checkpoints/sam2.1_hiera_nano.pt"

# Run from a folder that is not the checkout, with the install on the path: everything is found and the model builds.
USE_THE_INSTALL = """
import sys
from importlib.resources import files
from pathlib import Path
import sam2
from sam2.build_sam import build_sam2

assert Path(sys.argv[1]) in Path(sam2.__file__).parents, sam2.__file__
build_sam2(device="cpu")
build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
assert files("sam2").joinpath("py.typed").is_file()
"""


def run(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def checked(*command: str | Path, folder: Path, **variables: str) -> str:
    done = run(*command, folder=folder, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with things beside them that an install has to leave out."""
    pytest.importorskip("setuptools", minversion="77", reason="the build backend; the extra `dev` installs it")
    copy = tmp_path_factory.mktemp("checkout")
    without_builds = shutil.ignore_patterns("__pycache__", "*.so", "*.pt", "*.part")
    for folder in ("sam2", "configs", "checkpoints", "tests"):
        shutil.copytree(PROJECT / folder, copy / folder, ignore=without_builds)
    for name in PACKAGING:
        shutil.copy(PROJECT / name, copy / name)
    shutil.copy(PROJECT / "checkpoints" / Path(NANO).name, copy / "checkpoints")
    (copy / "checkpoints" / "sam2.1_hiera_tiny.pt").write_bytes(b"a downloaded checkpoint")
    for folder in ("benchmarks", "training"):
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    checked(sys.executable, "-m", "pip", "wheel", *BUILD_OPTIONS, "-w", folder, checkout, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_pure_and_named_after_the_version(wheel):
    assert wheel.name == f"sam2-{sam2.__version__}-py3-none-any.whl"


def test_wheel_holds_all_modules_configs_and_the_embedded_checkpoint_and_nothing_else(wheel):
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "sam2").rglob("*.py")}
    configs = {f"sam2/{path.relative_to(PROJECT).as_posix()}" for path in (PROJECT / "configs").rglob("*.yaml")}
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith(f"sam2-{sam2.__version__}.dist-info/")}
    assert len(configs) >= 9
    assert names - metadata == modules | configs | {NANO, "sam2/py.typed"}
    assert {name.rpartition("/")[2] for name in metadata} >= {"LICENSE", "NOTICE", "METADATA"}


def test_wheel_requires_no_more_than_the_core_libraries(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(f"sam2-{sam2.__version__}.dist-info/METADATA").decode()
    required = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-D")]
    core = {line.split(">=")[0] for line in required if "extra ==" not in line}
    assert core == {"torch", "torchvision", "numpy", "hydra-core", "iopath", "pillow", "opencv-python", "tqdm"}


def test_wheel_works_from_another_folder(wheel, tmp_path):
    target = tmp_path / "target"
    checked(sys.executable, "-m", "pip", "install", *BUILD_OPTIONS, "--target", target, wheel, folder=tmp_path)
    checked(sys.executable, "-c", USE_THE_INSTALL, target, folder=tmp_path, PYTHONPATH=str(target))


def test_editable_install_works_from_another_folder(checkout, tmp_path):
    options = [*BUILD_OPTIONS, "--ignore-installed", "--prefix", tmp_path / "prefix"]
    checked(sys.executable, "-m", "pip", "install", *options, "-e", checkout, folder=tmp_path)
    (site_packages,) = {path.parent for path in (tmp_path / "prefix").rglob("*.pth")}
    # -S keeps this environment's own .pth files out, and a sam2 that it may hold comes after the one just installed.
    enter = (
        "import site, sys\n"
        f"site.addsitedir({str(site_packages)!r})\n"
        "sys.meta_path.insert(0, sys.meta_path.pop())\n"
        f"sys.path += {[path for path in sys.path if path.endswith('-packages')]}\n"
    )
    checked(sys.executable, "-S", "-c", enter + USE_THE_INSTALL, checkout, folder=tmp_path)


def test_source_archive_holds_what_a_build_needs(checkout, tmp_path):
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    checked(sys.executable, "-c", build, tmp_path, folder=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    kernel = {f"sam2/csrc/{path.name}" for path in (PROJECT / "sam2" / "csrc").iterdir()}
    configs = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "configs").rglob("*.yaml")}
    assert names >= {*PACKAGING, *kernel, *configs, "sam2/py.typed", NANO.removeprefix("sam2/"), "tests/conftest.py"}
    assert "checkpoints/sam2.1_hiera_tiny.pt" not in names


def test_importing_the_package_imports_nothing_else(tmp_path):
    code = "import sys; before = set(sys.modules); import sam2; print(sorted(set(sys.modules) - before))"
    assert checked(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=str(PROJECT)).strip() == "['sam2']"


@pytest.fixture
def torch_that_cannot_build(tmp_path: Path) -> Path:
    """A folder with a stand-in for torch whose compiler fails."""
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("cuda = '13.0'\n")
    (tmp_path / "torch" / "utils" / "__init__.py").touch()
    (tmp_path / "torch" / "utils" / "cpp_extension.py").write_text(
        "from setuptools import Extension as CUDAExtension\n"
        "from setuptools.command.build_ext import build_ext\n"
        "class BuildExtension(build_ext):\n"
        "    def run(self):\n"
        "        raise RuntimeError('nvcc is too old')\n"
    )
    return tmp_path


@pytest.fixture
def no_torch(tmp_path: Path) -> Path:
    """A folder that hides torch, as an isolated build does."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch in this build')\n")
    return tmp_path


@pytest.mark.parametrize("obstacle, said", [("no_torch", "no torch"), ("torch_that_cannot_build", "nvcc is too old")])
def test_a_kernel_that_cannot_be_built_stops_no_install_unless_asked_to(request, checkout, obstacle, said):
    path = str(request.getfixturevalue(obstacle))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    assert said in checked(*command, folder=checkout, PYTHONPATH=path, SAM2_BUILD_CUDA="1")
    strict = run(*command, folder=checkout, PYTHONPATH=path, SAM2_BUILD_CUDA="1", SAM2_BUILD_ALLOW_ERRORS="0")
    assert strict.returncode != 0 and said in strict.stderr


def test_the_kernel_is_not_built_unless_asked_for(checkout, torch_that_cannot_build):
    said = checked(sys.executable, "setup.py", "build_ext", folder=checkout, PYTHONPATH=str(torch_that_cannot_build))
    assert "nvcc" not in said

"""What pyproject.toml cannot say: the folders that are installed into the package, and the optional CUDA kernel.

The kernel is built when SAM2_BUILD_CUDA=1 and torch, with CUDA, can be imported by the build, which takes
`pip install --no-build-isolation`. Without it everything works and gives the same masks. A build that fails is
reported and left out, unless SAM2_BUILD_ALLOW_ERRORS=0.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from setuptools import find_packages, setup

ERRORS_ALLOWED = os.environ.get("SAM2_BUILD_ALLOW_ERRORS", "1") != "0"
KERNEL_SOURCES = ["sam2/csrc/connected_components.cu", "sam2/csrc/bindings.cpp"]


def report(error: Exception) -> None:
    print(f"sam2: the CUDA kernel is left out, the CPU does its work: {error}", file=sys.stderr)


def kernel() -> dict[str, Any]:
    """The arguments of setup() that build the CUDA kernel."""
    from torch.utils.cpp_extension import BuildExtension, CUDAExtension
    from torch.version import cuda

    if cuda is None:
        raise OSError("this torch was built without CUDA")

    class BuildKernel(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # a missing or too old compiler shows in many ways, and none may stop an install
                if not ERRORS_ALLOWED:
                    raise
                report(error)
                self.extensions = []

    return {"ext_modules": [CUDAExtension("sam2._C", KERNEL_SOURCES)], "cmdclass": {"build_ext": BuildKernel}}


def kernel_if_wanted() -> dict[str, Any]:
    if os.environ.get("SAM2_BUILD_CUDA", "0") != "1":
        return {}
    try:
        return kernel()
    except (ImportError, OSError) as error:
        if not ERRORS_ALLOWED:
            raise
        report(error)
        return {}


setup(
    packages=[*find_packages(include=["sam2", "sam2.*"]), "sam2.configs", "sam2.checkpoints"],
    package_dir={"sam2.configs": "configs", "sam2.checkpoints": "checkpoints"},
    package_data={
        "sam2": ["py.typed"],
        "sam2.configs": ["**/*.yaml"],
        "sam2.checkpoints": ["sam2.1_hiera_nano.pt"],
    },
    include_package_data=False,
    **kernel_if_wanted(),
)

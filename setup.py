"""Builds ``tracenet_kernels._C`` with CMake; everything else about the package is in pyproject.toml.

The extension is optional. ``TRACENET_BUILD_NATIVE`` decides:

- unset: try, and where it does not build warn and install without it;
- ``1``: it must build, or the installation fails;
- ``0``: do not try.

``CMAKE_ARGS`` is handed to CMake's configure step.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
MODES = ("", "0", "1")


def native_mode() -> str:
    mode = os.environ.get("TRACENET_BUILD_NATIVE", "")
    if mode not in MODES:
        raise SetupError(f"TRACENET_BUILD_NATIVE is {mode!r}; set it to 1 (must build), 0 (skip) or leave it unset")
    return mode


class CMakeBuild(build_ext):
    """Runs CMake and Ninja, and reports any failure as the CompileError that setuptools knows to be optional."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11  # a build requirement: absent while setuptools only reads metadata

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        for command in (configure, ["cmake", "--build", str(build)]):
            self.run_tool(command)

    def run_tool(self, command: list[str]) -> None:
        if shutil.which(command[0]) is None:
            raise CompileError(f"{command[0]} is not installed; the C++ extension needs cmake, ninja and a compiler")
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise CompileError(
                f"the C++ extension did not build. TRACENET_BUILD_NATIVE=1 makes this an error, =0 skips it.\n"
                f"$ {shlex.join(command)}\n{result.stdout}"
            )


mode = native_mode()
setup(
    ext_modules=[] if mode == "0" else [Extension("tracenet_kernels._C", sources=[], optional=mode != "1")],
    cmdclass={"build_ext": CMakeBuild},
)

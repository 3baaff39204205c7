"""Builds the native extension with CMake; all else is in pyproject.toml.

TIGHTPASS_CUDA=ON|OFF|AUTO chooses the CUDA half (AUTO: where nvcc is found).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """`build_ext` that hands the work to CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        # --fresh: an earlier build's cache names tools of a build environment that is gone
        run(
            [
                *("cmake", "--fresh", "-S", str(Path(__file__).resolve().parent), "-B", str(work), "-G", "Ninja"),
                *("-DTIGHTPASS_EXTENSION=ON", f"-DTIGHTPASS_CUDA={os.environ.get('TIGHTPASS_CUDA', 'AUTO')}"),
                *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"),
                "-DCMAKE_BUILD_TYPE=Release",
            ]
        )
        run(["cmake", "--build", str(work), "--verbose"])
        run(["cmake", "--install", str(work), "--prefix", str(target)])


def run(command: list[str]) -> None:
    """Runs a build step; where it fails, pip's log ends with the command that did."""
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise SystemExit(f"building tightpass needs {command[0]!r} on the path") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"building tightpass failed (exit status {error.returncode}): {' '.join(command)}") from None


setup(ext_modules=[Extension("tightpass.kernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})

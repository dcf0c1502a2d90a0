"""Builds engine._core and kernels._cpu with CMake. All else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and puts the module where setuptools wants it.

    The build folder stays, so that what has not changed is compiled once: installed in place or
    packed into a wheel.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / "cmake" / sys.implementation.cache_tag / ext.name
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            str(ROOT),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('STEER_BUILD_TYPE', 'Release')}",
        ]
        make = ["cmake", "--build", ".", "--target", ext.name.rpartition(".")[2]]
        at_once = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run([*make, "--parallel", at_once], cwd=build, check=True)


setup(
    ext_modules=[Extension("engine._core", sources=[]), Extension("kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

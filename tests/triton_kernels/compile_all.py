"""Compiles every configuration that can be dispatched, for every target, without a GPU; prints one JSON line each.

A program of its own: kernels that the interpreter has taken over (TRITON_INTERPRET=1) cannot be compiled.
"""

import json

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from wuskern import configs
from wuskern.triton_kernels import bias_grad

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# dtype of the gradient, of the accumulator, of what a pass writes
DTYPES = [
    ("bf16", "fp32", "bf16"),
    ("bf16", "fp32", "fp32"),
    ("fp16", "fp32", "fp32"),
    ("fp32", "fp32", "fp32"),
    ("fp64", "fp64", "fp64"),
]
ALIGNED = [["tt.divisibility", 16]]


def source(kernel, tile, dtypes, size):
    """The kernel as Triton specialises it: with ``i32`` for pointers and sizes that are multiples of 16, as large problems
    have them; with ``i64`` for any alignment and more than 2^31 elements."""
    import triton.language as tl

    src, acc, out = dtypes
    accumulator = {"fp32": tl.float32, "fp64": tl.float64}[acc]
    if kernel is bias_grad.sum_rows:
        sizes = ("rows", "columns", "stride", "rows_per_program")
        constants = {"BLOCK_R": tile.block_rows, "BLOCK_C": tile.block_columns}
    else:
        sizes = ("outer", "channels", "inner", "outer_stride", "channel_stride", "outer_per_program", "inner_per_program")
        constants = {"BLOCK_C": tile.block_channels, "BLOCK_I": tile.block_inner}
    constants["ACC"] = accumulator
    signature = {"src": f"*{src}", "out": f"*{out}"} | dict.fromkeys(sizes, size) | dict.fromkeys(constants, "constexpr")
    order = [p.name for p in kernel.params]
    signature = {name: signature[name] for name in order}
    attrs = {(order.index(name),): ALIGNED for name in ("src", "out", *sizes[1:])} if size == "i32" else {}
    return ASTSource(kernel, signature, {(order.index(n),): v for n, v in constants.items()}, attrs)


problems = [
    (kernel, tile, dtypes, size, target)
    for kernel in (bias_grad.sum_rows, bias_grad.sum_planes)
    for tile in configs.ALL[kernel.__name__]
    for dtypes in DTYPES
    for size in ("i32", "i64")
    for target in TARGETS
]
for kernel, tile, dtypes, size, target in problems:
    gpu = TARGETS[target]
    options = {"num_warps": tile.num_warps, "enable_fp_fusion": False}
    compiled = compile(source(kernel, tile, dtypes, size), target=gpu, options=options)
    code = compiled.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    loads = sorted({line.split()[0 if "@" not in line else 1] for line in code.splitlines() if "ld.global" in line})
    row = {"kernel": kernel.__name__, "tile": str(tile), "dtypes": dtypes, "size": size, "target": target, "loads": loads}
    if gpu.backend == "cuda":
        row["cubin"] = compiled.asm["cubin"].hex()
    else:
        row["spills"] = [line.strip() for line in code.splitlines() if "_spill_count" in line]
    print(json.dumps(row))

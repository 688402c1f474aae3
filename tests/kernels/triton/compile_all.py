"""Compiles every configuration that can be dispatched to a target, without a GPU; prints one JSON line each.

    python tests/kernels/triton/compile_all.py [--first] [TARGET ...]    all targets, or those named

--first: of each kernel one configuration each way, instead of every configuration.

A program of its own: kernels that the interpreter has taken over (TRITON_INTERPRET=1) cannot be compiled. Two processes.

Two ways for each, and what lies between them needs no more registers than the second:
``aligned``: pointers, strides and sizes that are multiples of 16 and channels at unit stride, as large problems have them;
``any``: no alignment, no unit stride, more than 2^31 elements.
"""

import json
import re
import sys
from dataclasses import astuple
from multiprocessing import get_context

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from wuskern.kernels.triton import (
    bias_grad,
    gather_rows,
    pack_bits,
    piecewise_,
    rowsparse_adam_,
    rowsparse_dgrad,
    rowsparse_sgd_,
    rowsparse_wgrad,
    scale_by_bits,
    scale_channels,
    select_rows,
    tiles,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SUMS = (bias_grad.sum_rows, bias_grad.sum_planes)
GATHERS = (gather_rows.gather_columns, gather_rows.gather_planes)
GEMMS = (rowsparse_wgrad.wgrad, rowsparse_wgrad.wgrad_conv2d, rowsparse_dgrad.dgrad, rowsparse_dgrad.dgrad_conv2d)
UPDATES = (rowsparse_sgd_.update_sgd, rowsparse_adam_.update_adam)
BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
WIDE = {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32", "fp64": "fp64"}
# Of a sum: dtype of what is read, of what is written (another where a second pass follows), and the score beside it, which
# only adds to what a sum without one does.
SUMMED = [("bf16", "bf16", ""), ("bf16", "fp32", "l1"), ("fp32", "fp32", ""), ("fp32", "fp32", "l2"), ("fp64", "fp64", "l1")]
MOVED = ("bf16", "fp32", "fp64")  # fp16 is read, added and multiplied by the instructions that bf16 is
MULTIPLIED = [("bf16", "ieee"), ("fp32", "ieee"), ("fp32", "tf32"), ("fp64", "ieee")]
TYPES = {"fp32": tl.float32, "fp64": tl.float64}
INSTRUCTIONS = r"(?<![\w.])(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma)(?![a-z])"

# What a kernel's argument is, by its name: 32 bits whatever the size of the problem; of unit stride in an aligned one; of
# any value in an aligned one too.
SMALL = r"(tap_step|stride|padding|dilation|kernel)_.*|.*width|.*height|plane|row_channels|taps|groups|block|k"
UNIT = r"(x_feature|x_channel|weight_feature|column|inner)_stride|stride"
ODD = (
    r"(rows|tokens|pixels|outer)_per_program|rows|tokens|pixels|outer|batch|n|weight_(channel|h|w)_stride|dy_.*_stride|(?!out).*height|width|.*_width|"
    + SMALL
)


def source(kernel, pointers, constants, way):
    """The kernel as Triton specialises it."""
    signature, attributes, order = {}, {}, [p.name for p in kernel.params]
    for i, name in enumerate(order):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "i32" if way == "aligned" or re.fullmatch(SMALL, name) else "i64"
        if way == "aligned" and signature[name] != "constexpr" and not (re.fullmatch(ODD, name) and name not in pointers):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, {(order.index(n),): v for n, v in constants.items()}, attributes)


def units(kernel, way):
    """The arguments that are 1 in an aligned problem, and Triton compiles such a one in; the order of a row update's."""
    if kernel in UPDATES:
        return {"CHANNELS_LAST": way == "any"}
    if way == "any":
        return {}
    unit = UNIT + ("|channel_stride" if kernel is rowsparse_dgrad.dgrad_conv2d else "")
    return {p.name: 1 for p in kernel.params if re.fullmatch(unit, p.name) and kernel not in SUMS}


def sums():
    for kernel in SUMS:
        for tile in tiles.MEMORY[kernel.__name__]:
            side = ("BLOCK_R", "BLOCK_C") if kernel is bias_grad.sum_rows else ("BLOCK_C", "BLOCK_I")
            for src, out, score in SUMMED:
                constants = dict(zip(side, astuple(tile), strict=False), ACC=TYPES[WIDE[src]], SCORE=score)
                yield kernel, tile, {"src": src, "out": out, "scores": WIDE[src]}, constants


def gathers():
    for kernel in GATHERS:
        side = ("BLOCK_R", "BLOCK_C") if kernel is gather_rows.gather_columns else ("BLOCK_C", "BLOCK_I")
        for tile in tiles.MEMORY[kernel.__name__]:
            for src in MOVED:
                yield kernel, tile, {"src": src, "rows": "i64", "out": src}, dict(zip(side, astuple(tile), strict=False))


def selections():
    for tile in tiles.MEMORY["select"]:
        for src, acc in ((src, WIDE[src]) for src in MOVED):
            key, bits = (tl.uint64, 64) if acc == "fp64" else (tl.uint32, 32)
            constants = {"ACC": TYPES[acc], "KEY": key, "BITS": bits, "CHUNK": tile.chunk}
            yield select_rows.select, tile, {"scores": src, "out": "i64"}, constants


def lines():
    """Of pack_bits, piecewise_, scale_by_bits and scale_channels."""
    for src in MOVED:
        wide = TYPES[WIDE[src]]
        pack, by_bits, each = pack_bits.pack, scale_by_bits.scale_set, scale_channels.scale_each
        (bits,), (line,) = tiles.MEMORY["pack"], tiles.MEMORY["scale_each"]
        flags = {"ACC": wide, "BLOCK": bits.block}
        yield pack, bits, {"x": src, "numbers": "fp64", "out": "u8"}, flags | {"BOUNDED": True, "NAN": True}
        clamping = flags | {"BOUNDED": True, "NAN": True, "CLAMPS": True}
        yield piecewise_.piecewise, bits, {"y": src, "x": src, "numbers": "fp64", "bits": "u8"}, clamping
        yield by_bits, bits, {"dy": src, "bits": "u8", "numbers": "fp64", "out": src}, flags | {"ZERO": False}
        yield each, line, {"dy": src, "scale": WIDE[src], "out": src}, {"ACC": wide, "BLOCK": line.block}


def updates():
    for src in MOVED:
        tile, short = tiles.MEMORY["update_adam"]
        for one in (tile, short) if src == "fp32" else (tile,):
            constants = {"ACC": TYPES[WIDE[src]], "BLOCK": one.block}
            pointers = dict.fromkeys(("param", "buffer", "first", "second", "most", "values"), src)
            pointers |= {"rows": "i64", "numbers": "fp64", "corrections": "fp64"}
            constants |= {"COMPACT": one is short, "GATHERED": one is not short}
            flags = {"HAS_BUFFER": True, "DECAY": True, "NESTEROV": True}
            yield rowsparse_sgd_.update_sgd, one, only(rowsparse_sgd_.update_sgd, pointers), constants | flags
            flags = {"AMSGRAD": True, "COUPLED": True}
            yield rowsparse_adam_.update_adam, one, only(rowsparse_adam_.update_adam, pointers), constants | flags


def only(kernel, pointers):
    names = [p.name for p in kernel.params]
    return {name: kind for name, kind in pointers.items() if name in names}


def problems(target):
    for kernel, tile, pointers, constants in (*sums(), *gathers(), *selections(), *lines(), *updates()):
        for way in ("any",) if kernel is select_rows.select else ("aligned", "any"):  # it reads by the element anyway
            yield target, kernel, tile, pointers, constants, way
    for kernel in GEMMS:
        tables = tiles.PRODUCTS[target][kernel.__name__]
        for scattered, table in tables.items():
            ways = ("any",) if scattered else ("aligned",) if len(tables) == 2 else ("aligned", "any")
            for src, precision in MULTIPLIED:
                if precision == "tf32" and TARGETS[target].backend == "hip":
                    continue  # gemm.options asks for it nowhere but on NVIDIA
                for tile in table[BYTES[src]]:
                    for way in ways:
                        yield target, *gemm(kernel, tile, src, precision, way)


def gemm(kernel, tile, src, precision, way):
    pointers = dict.fromkeys(("dy", "x", "weight", "out"), src) | {"rows": "i64"}
    constants = {
        "PACKED": way == "aligned", "ACC": TYPES[WIDE[src]], "INDEX": tl.int32 if way == "aligned" else tl.int64,
        "PRECISION": precision, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
    }  # fmt: skip
    if kernel is rowsparse_dgrad.dgrad_conv2d:
        constants["TAPS"] = 4
    return kernel, tile, pointers, constants, way


def compiled(index):
    target, kernel, tile, pointers, constants, way = PROBLEMS[index]
    gpu = TARGETS[target]
    options = {"num_warps": tile.num_warps, "num_stages": getattr(tile, "num_stages", 3), "enable_fp_fusion": kernel in GEMMS}
    result = compile(source(kernel, pointers, constants | units(kernel, way), way), target=gpu, options=options)
    code = result.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    row = {
        "kernel": kernel.__name__, "tile": str(tile), "target": target, "way": way,
        "dtypes": list(pointers.values()), "precision": constants.get("PRECISION"), "shared": result.metadata.shared,
        "loads": sorted(set(re.findall(r"(?:ld\.global|cp\.async\.c|global_load|buffer_load)\S*(?:.*, 0x10,)?", code))),
        "products": sorted(set(re.findall(INSTRUCTIONS, code))),
    }  # fmt: skip
    if gpu.backend == "cuda":
        row["cubin"] = result.asm["cubin"].hex()
    else:
        row["spills"] = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size): +\d+", code)
    return json.dumps(row)


def chosen(arguments):
    targets = [argument for argument in arguments if argument != "--first"] or TARGETS
    everything = [problem for target in targets for problem in problems(target)]
    if "--first" not in arguments:
        return everything
    one = {(target, kernel.__name__, way): problem for problem in reversed(everything) for target, kernel, *_, way in [problem]}
    return list(one.values())


PROBLEMS = chosen(sys.argv[1:])

if __name__ == "__main__":
    with get_context("fork").Pool(2) as pool:
        for line in pool.imap(compiled, range(len(PROBLEMS)), chunksize=4):
            print(line, flush=True)

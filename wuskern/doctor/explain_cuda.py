"""``wuskern doctor --explain ... --device cuda``: which way each product takes on a GPU of some capability, why so, and what
each way is expected to take. Needs no GPU and measures nothing."""

from wuskern.doctor.question import Question
from wuskern.doctor.report import Line, Report
from wuskern.gradients import gathers
from wuskern.kernels.cuda import rule
from wuskern.kernels.cuda.gpus import gpu_of
from wuskern.kernels.problem import Problem


def report(question: Question, capability: str) -> Report:
    """The answer for a GPU of a capability."""
    p, gpu = question.wgrad, gpu_of(capability)
    lies = f", {'NCHW' if p.planes else 'NHWC'}" if p.is_conv2d else ""
    lines: list[Line] = [
        ("problem", f"{question.layer}{lies}, {str(p.dtype).removeprefix('torch.')}"),
        ("GPU", f"{capability}: the tiles of {gpu.architecture}, the rates of {gpu.name}"),
        ("choice", question.rows),
    ]
    if not question.is_dense:
        is_both = question.choice.scope == "both"
        if is_both or gathers(p.features, p.k, p.out):  # as gradients has it
            lines += _product("dW", p._replace(out=p.k), "compact dY", capability)
        else:
            lines += _product("dW", p._replace(k=p.out), "whole dY", capability)
        if is_both:
            lines += _product("dX", question.dgrad._replace(out=p.k), "compact dY", capability)
        else:
            lines.append(("dX", "dense: scope is weight"))
    return Report(tuple(lines))


def _product(name: str, p: Problem, operand: str, capability: str) -> list[Line]:
    """The choice, and a line for each way; of a gathered dy, the gather is not in it."""
    ways = tuple(way for way in rule.WAYS if way != "native" or not capability.startswith("gfx"))  # CUDA C++ is for NVIDIA's
    decision, least = rule.choose(p, capability, ways), rule.floor(p, capability)
    lines = [(name, f"{decision.way} on the {operand}: {decision.reason}; floor {1e6 * least:.1f} us")]
    for way, work in decision.works.items():
        launches = f"{work.launches} launch{'es' if work.launches > 1 else ''}"
        amounts = f"{work.moved / 1e6:.3g} MB, {work.operations / 1e9:.3g} GFLOP, {launches}"
        lines.append((f"{name} {way}", f"{1e6 * work.seconds:.1f} us, {work.seconds / least:.2f}x the floor: {amounts}"))
    return lines

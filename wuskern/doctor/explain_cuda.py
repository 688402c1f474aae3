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
    p, gpu = question.whole, gpu_of(capability)
    lies = f", {'NCHW' if p.planes else 'NHWC'}" if p.is_conv2d else ""
    lines: list[Line] = [
        ("problem", f"{question.layer}{lies}, {str(p.dtype).removeprefix('torch.')}"),
        ("GPU", f"{capability}: the tiles of {gpu.architecture}, the rates of {gpu.name}"),
        ("choice", question.choice),
    ]
    if question.gathers:
        lines += _gather_of_x(question, capability)
    if not question.is_dense:
        lines += _dw(question, capability)
        if question.of_both:
            lines += _product("dX", question.dgrad._replace(out=p.k), "compact dY", capability, _ways(capability))
        else:
            lines.append(("dX", question.why_dx_is_dense))
    return Report(tuple(lines))


def _gather_of_x(question: Question, capability: str) -> list[Line]:
    """The gather of the columns in forward, behind the sums that choose them, and how much of x is kept."""
    whole, part = question.whole.input_bytes, question.wgrad.input_bytes
    touched, gpu = rule.touched_of_x(question.whole, question.k_columns), gpu_of(capability)
    seconds = [bytes_moved / gpu.bytes_per_second + gpu.launch for bytes_moved in (touched + part, whole)]
    return [
        ("gather of x", f"in forward, {(touched + part) / 1e6:.3g} MB: {1e6 * seconds[0]:.1f} us"),
        ("scores of x", f"in forward, {whole / 1e6:.3g} MB: {1e6 * seconds[1]:.1f} us; none with fixed columns"),
        ("kept", f"{part / 1e6:.3g} MB of {whole / 1e6:.3g} MB of x"),
    ]


def _dw(question: Question, capability: str) -> list[Line]:
    """The lines of the weight gradient, whose dY is gathered as ``gradients`` has it."""
    p = question.wgrad
    x = " and x" if question.columns is not None else ""
    if question.rows is None:  # all rows of some columns are PyTorch's own product
        return _product("dW", p, "compact x", capability, ("library",))
    if question.of_both or gathers(p.features, p.k, p.out):
        return _product("dW", p._replace(out=p.k), f"compact dY{x}", capability, _ways(capability))
    return _product("dW", p._replace(k=p.out), f"whole dY{x and ', compact x'}", capability, _ways(capability))


def _ways(capability: str) -> tuple[str, ...]:
    return tuple(way for way in rule.WAYS if way != "native" or not capability.startswith("gfx"))  # CUDA C++ is for NVIDIA's


def _product(name: str, p: Problem, operand: str, capability: str, ways: tuple[str, ...]) -> list[Line]:
    """The choice, and a line for each way; of a gathered operand, the gather is not in it."""
    decision, least = rule.choose(p, capability, ways), rule.floor(p, capability)
    reason = decision.reason if len(ways) > 1 else f"PyTorch's own product, most of it {decision.works[decision.way].bound}"
    lines = [(name, f"{decision.way} on the {operand}: {reason}; floor {1e6 * least:.1f} us")]
    for way, work in decision.works.items():
        launches = f"{work.launches} launch{'es' if work.launches > 1 else ''}"
        amounts = f"{work.moved / 1e6:.3g} MB, {work.operations / 1e9:.3g} GFLOP, {launches}"
        lines.append((f"{name} {way}", f"{1e6 * work.seconds:.1f} us, {work.seconds / least:.2f}x the floor: {amounts}"))
    return lines

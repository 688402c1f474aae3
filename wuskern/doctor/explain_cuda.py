"""``wuskern doctor --explain ... --device cuda``: which way each product takes on a GPU of some capability, why so, and what
each way is expected to take. Needs no GPU and measures nothing."""

from collections.abc import Sequence

import torch

from wuskern.choices import TopK
from wuskern.common.shapes import output_size
from wuskern.doctor.report import Line, Report
from wuskern.gradients import gathers
from wuskern.kernels.cuda import choice
from wuskern.kernels.cuda.gpus import RATES, architecture
from wuskern.kernels.cuda.product import Product


def linear(sides: Sequence[int], chosen: TopK, dtype: torch.dtype, capability: str) -> Report:
    """``sides``: tokens, outputs and inputs."""
    tokens, out, inputs = sides
    k, name = chosen.count(out), str(dtype)[6:]
    held = k if _gathers(chosen, inputs, k, out) else out
    products = [
        Product(f"rowsparse_{part}", name, tokens, inputs, held, k if held == k else out, tokens * inputs)
        for part in ("wgrad", "dgrad")
    ]
    title = f"Linear {out} x {inputs}, {tokens} tokens, {name}"
    return _report(title, k, out, chosen, products, capability)


def conv2d(
    sides: Sequence[int], chosen: TopK, dtype: torch.dtype, stride: int, padding: int | None, groups: int,
    channels_last: bool, capability: str,
) -> Report:  # fmt: skip
    """``sides``: batch, channels, output channels, side of the image and of the kernel."""
    batch, channels, out, side, kernel = sides
    k, name, taps = chosen.count(out, groups), str(dtype)[6:], kernel * kernel
    pair = (kernel, kernel)
    padded = kernel // 2 if padding is None else padding
    pixels = output_size((side, side), pair, (stride, stride), (padded, padded), (1, 1))
    features = channels // groups * taps
    held = k if _gathers(chosen, features, k, out) else out
    products = [
        Product(
            f"rowsparse_{part}_conv2d", name, batch * pixels[0] * pixels[1], features, held, k if held == k else out,
            batch * channels * side * side, taps, groups, planes=not channels_last,
        )
        for part in ("wgrad", "dgrad")
    ]  # fmt: skip
    like = "NHWC" if channels_last else "NCHW"
    title = f"Conv2d {channels} -> {out}, {kernel}x{kernel}, {batch} images of {side}x{side}, {like}, {name}"
    return _report(title, k, out, chosen, products, capability)


def _gathers(chosen: TopK, features: int, k: int, out: int) -> bool:
    """As ``gradients`` has it."""
    return chosen.scope == "both" or gathers(features, k, out)


def _report(title: str, k: int, out: int, chosen: TopK, products: list[Product], capability: str) -> Report:
    rates = RATES[architecture(capability)]
    lines: list[Line] = [
        ("problem", title),
        ("GPU", f"{capability}: the tiles of {architecture(capability)}, the rates of {rates.name}"),
    ]
    if k == out:
        return Report((*lines, ("choice", "dense: all rows are stock's own backward")))
    lines.append(("choice", f"{k} of {out} rows ({k / out:.1%}) by {chosen.score}, scope {chosen.scope}"))
    for name, p in zip(("dW", "dX"), products, strict=True):
        if name == "dX" and chosen.scope == "weight":
            lines.append((name, "dense: scope is weight"))
        else:
            lines += _product(name, p, capability)
    return Report(tuple(lines))


def _product(name: str, p: Product, capability: str) -> list[Line]:
    """The choice, and a line for each way; of a gathered dy, the gather is not in it."""
    decision, least = choice.choose(p, capability), choice.floor(p, capability)
    operand = "compact dY" if p.k == p.out else "whole dY"
    lines = [(name, f"{decision.way} on the {operand}: {decision.reason}; floor {1e6 * least:.1f} us")]
    for way, count in choice.counts(p, capability).items():
        if way in decision.seconds:
            expected = decision.seconds[way]
            work = f"{count.moved / 1e6:.3g} MB, {count.operations / 1e9:.3g} GFLOP, {_launches(count.launches)}"
            lines.append((f"{name} {way}", f"{1e6 * expected:.1f} us, {expected / least:.2f}x the floor: {work}"))
    return lines


def _launches(count: int) -> str:
    return f"{count} launch{'es' if count > 1 else ''}"

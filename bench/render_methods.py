"""The tables over all methods, as Markdown: what each saved and what it cost, and beside it the claim of its paper."""

import statistics
from typing import Any

from bench.render import MIB, accuracy, against_control, machine, points, table
from wuskern.train.methods import DENSE, parse
from wuskern.train.phases import PHASES

# By the name of a part: the source's claim, and why a small network on two cores need not show it.
CLAIMS = {
    "wus": "WUS: 54 % / 43 % less training time on CPU for CIFAR-10 / 100, accuracy virtually the same. Here a skipped step "
    "saves what the weight gradient and update cost, and windows open only once accuracy stands still.",
    "wus+lr": "WUS+LR: 50 % / 35 % less time. As WUS; the factor of the rate is ours.",
    "meprop": "meProp: backprop alone 5.9x faster on MNIST (MLP-500, top-80), accuracy +.03 to +.07. Here the whole step is "
    "timed, against a dense step that is fast, and all hidden layers share one ratio.",
    "ssprop": "ssProp: 40 % of the backward's FLOPs with bars at .2. Half of the epochs are dense, so time falls by less.",
    "memory": "MSBP: backprop 9.7x, training 2.1x on MNIST. This is a score memory, not its formula, which is unknown to us.",
    "tinyprop": "TinyProp: for fine-tuning on microcontrollers. Here from scratch, unified over the batch, four ratios.",
    "mesimp": "meSimp: an MLP-500 on MNIST keeps 154 of 500 neurons at +.11. Training is no faster while neurons are "
    "masked; with simplify=true the network itself becomes smaller.",
    "crs": "WTA-CRS: 2.7x less peak memory in tuning T5, with almost no loss of accuracy, by choosing tokens in forward. "
    "Here they are chosen in backward, by both factors; a convolution's tokens are whole images, of which a batch has few.",
    "spfde": "SpFDE: the three levers together, on sparse ImageNet nets, with a sparse kernel's FLOPs counted. Here the zeros "
    "are multiplied: what remains is sieving and freezing.",
    "freeze": "SpFDE: freezing from front to back, its schedule unknown; on sparse ImageNet nets. The front layers of this net "
    "are its cheap ones, its last layers hold most weights.",
    "freeze-once": "SpFDE's single-shot scheme and, with until, single-shot and resume: compared there with progressive "
    "freezing; no figure is in a source at hand.",
    "freeze-periodic": "SpFDE's periodic scheme: the same.",
    "freeze-delayed": "SpFDE's delayed scheme: the same; the growth from turn to turn is ours.",
    "composer": "composer: no figure for it by itself is in a source at hand. Its schedule ends with one layer that trains.",
    "pipetransformer": "PipeTransformer: up to 2.83x on ViT and BERT over many GPUs, most of it by pipelines, not by freezing.",
    "autofreeze": "AutoFreeze: up to 2.55x in fine-tuning BERT, with cached activations. Here from scratch, where gradients of "
    "front layers settle late.",
    "sieve": "SpFDE and MEST: training on a part of the data at about the same accuracy. Fewer steps each epoch; dense in the "
    "same time takes fewer epochs instead.",
    "mest": "MEST: ResNet-32 on CIFAR-10 at 90 % zeros, whose accuracy is the claim. No kernel of PyTorch's trains faster for "
    "them: its time is dense training's and what the masks cost.",
    "rigl": "RigL: ResNet-50 on ImageNet at 80 and 90 % zeros, FLOPs counted as if a kernel left zeros out. As MEST.",
    "frozen": "PyTorch's own requires_grad_(False) in the epochs that WUS skips: what WUS is to be compared with.",
}


def methods(content: dict[str, Any]) -> str:
    """Which methods beat dense training in the same time first, then a row per method with its control."""
    rows = [row for row in content["summary"] if row["control_of"] is None]
    own = {row["control_of"]: row for row in content["summary"] if row["control_of"] is not None}
    header = [
        "method", "test accuracy", "test loss", "epochs", "seconds", *(f"{phase} s" for phase in PHASES), "FLOPs of dense's",
        "step's peak MiB", "times faster", "points against dense", "dense in the same time", "points against that",
    ]  # fmt: skip
    body = [_row(row, own.get(row["policy"]), content["peak_bytes"]) for row in rows]
    said = f"{len(rows[0]['accuracies'])} paired seeds, 95 % intervals; {machine(content)}."
    return "\n\n".join([_verdict(rows), table(header, body), said])


def with_claims(content: dict[str, Any]) -> str:
    """The same, and below it what each method's source claims."""
    labels = [row["policy"] for row in content["summary"] if row["control_of"] is None]
    parts = dict.fromkeys(part.name for label in labels for part in parse(label)[0].parts)
    claims = "\n".join(f"- {CLAIMS[name]}" for name in parts)
    return f"{methods(content)}\n\nWhat the sources claim, and why a small network on two cores may differ:\n\n{claims}"


def search(content: dict[str, Any]) -> str:
    """The rounds of the search, one table."""
    body = []
    for number, rows in enumerate(content["rounds"], 1):
        for row in rows:
            mean = f"{100 * statistics.fmean(row['accuracies']):.2f} %"
            measured = (f"{row['times_faster']:.2f}x", f"{row['flops']:.0%}")
            body.append([str(number), f"`{row['method']}`", mean, str(len(row["accuracies"])), *measured])
    return table(["round", "method", "test accuracy", "seeds", "times faster", "FLOPs of dense's"], body)


def _verdict(rows: list[dict[str, Any]]) -> str:
    compared = [row for row in rows if row["against_control"] is not None]
    better = [f"`{row['policy']}`" for row in compared if not row["loss"]]
    if not better:
        return f"**None of {len(compared)} methods is shown to beat dense training in the same time.**"
    chance = f"of {len(compared)} comparisons, {len(compared) / 40:.1g} come out so by chance"
    return f"{len(better)} of {len(compared)} methods beat dense training in the same time: {', '.join(better)} ({chance})."


def _flops(row: dict[str, Any]) -> str:
    if row["flops"] is None:
        return "-"
    masked = row.get("masked", 0.0)  # older results have none
    return f"{row['flops']:.0%}" + (f", {row['flops'] - masked:.0%} without zeros" if masked else "")


def _row(row: dict[str, Any], control: dict[str, Any] | None, peaks: dict[str, int]) -> list[str]:
    peak = peaks.get(row["policy"])
    return [
        "dense" if row["policy"] == DENSE else f"`{row['policy']}`",
        accuracy(row),
        "-" if row["test_loss"] is None else f"{row['test_loss']:.3f}",
        f"{statistics.fmean(row['epochs']):.3g}",
        f"{row['seconds']:.2f}",
        *(f"{row['phase_seconds'][phase]:.2f}" for phase in PHASES),
        _flops(row),
        "-" if peak is None else f"{peak / MIB:.1f}",
        "-" if row["faster"] is None else f"{1 / (1 - row['faster']):.2f}x",
        points(row["against_dense"]),
        "-" if control is None else accuracy(control),
        against_control(row),
    ]

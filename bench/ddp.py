"""DDP over a link of 1 Gbit/s: bytes and time of a step that is dense, skips, or trains 5 % of the rows.

    python -m bench.ddp [--out bench/results/ddp.json]

Two gloo processes of one thread each, in two network namespaces (needs root, ip and tc), VGG-11. "dense" is stock DDP; the
others are prepared by ``wuskern.distributed``. Bytes are counted where collectives are called, in tensors' bytes, and at the
interface, where gloo's and TCP's headers and acknowledgements are in. DDP's broadcast of batch norm's buffers is switched off
for all. Variants are interleaved; times are medians over rounds, of the slower process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from bench import link
from bench.results import FOLDER, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.modules import skippable_layers
from wuskern.train.files import replacing
from wuskern.train.models import MODELS

FORMAT, PORT, RATE = 1, 29477, "1gbit"
VARIANTS = ("dense", "prepared", "skip", "rows")
RATIO, BATCH, SIZE = 0.05, 16, 32  # images of each process
LR, MOMENTUM = 0.01, 0.9
LABELS = {"prepared": "dense, prepared", "rows": f"{RATIO:.0%} of the rows"}
WARM_UP, ROUNDS = 3, 15
MOST = {"skip": 1.05, "rows": 1.2}  # of what is trained


# ---- one process ----------------------------------------------------------------------------------------------------


class Counter:
    """Bytes of the tensors that this process gives to collectives, by name."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        for name, sent in (("all_reduce", lambda t, *_: t), ("all_gather", lambda _, t: t)):
            setattr(dist, name, self._counted(name, getattr(dist, name), sent))

    def _counted(self, name: str, original: Callable[..., Any], sent: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            tensor = sent(*args[:2]) if name == "all_gather" else args[0]
            self.bytes[name] = self.bytes.get(name, 0) + tensor.numel() * tensor.itemsize
            return original(*args, **kwargs)

        return counted

    def take(self) -> dict[str, int]:
        taken, self.bytes = self.bytes, {}
        return taken


class Variant:
    """A model of its own, and one step of it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        model = MODELS["vgg11"](3, (SIZE, SIZE), 10, 1.0)
        self.name, self.layers = name, []
        if name != "dense":
            wk.convert(model)
            self.layers = list(skippable_layers(model).values())
        if name == "rows":
            wk.set_rows(model, wk.TopK(ratio=RATIO))
        self.model = DistributedDataParallel(model, broadcast_buffers=False)
        if name != "dense":
            wk.distributed.prepare(self.model)
        module = wk.optim if name == "rows" else torch.optim  # which asks for sparse gradients, and moves the rows alone
        self.optimizer = module.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def settle(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """A window of skipped steps follows full ones: the first step is full, which also builds DDP's buckets."""
        for number in range(WARM_UP):
            if self.name == "skip":
                wk.set_skip(self.model, number > 0)
            self.step(x, y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def trained(self) -> dict[str, int]:
        """Bytes of the parameters that a step trains, and of the scores that choose rows."""
        weights = {id(layer.weight) for layer in self.layers}
        rest = sum(p.numel() * p.itemsize for p in self.model.parameters() if id(p) not in weights)
        if self.name != "rows":
            dense = 0 if self.name == "skip" else sum(layer.weight.numel() * layer.weight.itemsize for layer in self.layers)
            return {"parameters": rest + dense, "scores": 0}
        rows = sum(4 * layer.weight[0].numel() * wk.TopK(ratio=RATIO).count(len(layer.weight)) for layer in self.layers)
        return {"parameters": rest + rows, "scores": sum(4 * len(layer.weight) for layer in self.layers)}


def process(rank: int, address: str, interface: str, out: Path) -> None:
    torch.set_num_threads(1)
    settle_allocator()
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=rank, world_size=2)
    counter = Counter()
    draw = torch.Generator().manual_seed(rank)
    x, y = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw), torch.randint(10, (BATCH,), generator=draw)
    variants = [Variant(name) for name in VARIANTS]
    for variant in variants:
        variant.settle(x, y)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    counted: dict[str, list[dict[str, int]]] = {name: [] for name in VARIANTS}
    wire: dict[str, list[int]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for variant in variants:
            dist.barrier()
            counter.take()
            before, start = link.sent(interface), time.perf_counter()
            variant.step(x, y)
            seconds[variant.name].append(time.perf_counter() - start)
            wire[variant.name].append(link.sent(interface) - before)
            counted[variant.name].append(counter.take())
    if rank == 0:
        assert all(p.isfinite().all() for variant in variants for p in variant.model.parameters())
    trained = {variant.name: variant.trained() for variant in variants}
    out.write_text(json.dumps({"seconds": seconds, "wire": wire, "counted": counted, "trained": trained}))
    dist.destroy_process_group()


# ---- both -----------------------------------------------------------------------------------------------------------


def measure(folder: Path) -> list[dict[str, Any]]:
    """What the two processes found."""
    files = [folder / f"ddp-rank{rank}.json" for rank in range(2)]
    with link.shaped(RATE) as ends:
        python = sys.executable, "-W", "ignore::FutureWarning", "-m", "bench.ddp"  # broadcast_buffers: of newer torch
        commands = [
            (*end.prefix, *python, "--rank", str(rank), "--address", ends[0].address, "--interface", end.interface)
            for rank, end in enumerate(ends)
        ]
        children = [subprocess.Popen((*c, "--out", str(file))) for c, file in zip(commands, files, strict=True)]
        try:
            failed = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()
    if any(failed):
        raise SystemExit(f"bench.ddp: the processes ended with {failed}")
    found = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return found


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each variant."""
    rows = []
    slower = {name: [max(pair) for pair in zip(*(f["seconds"][name] for f in found), strict=True)] for name in VARIANTS}
    for name in VARIANTS:
        counts = found[0]["counted"][name]
        payload = statistics.median(sum(count.values()) for count in counts) if name != "dense" else None
        trained = found[0]["trained"][name]
        rows.append(
            {
                "step": name,
                "seconds": statistics.median(slower[name]),
                "quartiles": [round(q, 4) for q in statistics.quantiles(slower[name], n=4)[::2]],
                "faster": statistics.median(d / s for d, s in zip(slower["dense"], slower[name], strict=True)),
                "trained_bytes": trained["parameters"],
                "score_bytes": trained["scores"],
                "payload_bytes": payload,
                "payload_share": payload / (trained["parameters"] + trained["scores"]) if payload is not None else None,
                "wire_bytes": statistics.median(found[0]["wire"][name]),
                "most": MOST.get(name),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| step | ms | faster | trained and scores, bytes | given to collectives | share | at the interface |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        share = "-" if row["payload_share"] is None else f"{row['payload_share']:.3f}x"
        if row["most"] is not None and row["payload_share"] > row["most"]:
            share += f" **over {row['most']}**"
        payload = "-" if row["payload_bytes"] is None else f"{row['payload_bytes']:,.0f}"
        name = LABELS.get(row["step"], row["step"])
        trained = row["trained_bytes"] + row["score_bytes"]
        lines.append(
            f"| {name} | {1e3 * row['seconds']:.0f} | {row['faster']:.2f}x | {trained:,} | {payload} | {share} "
            f"| {row['wire_bytes']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ddp", description="DDP over a link of 1 Gbit/s")
    parser.add_argument("--out", type=Path, default=FOLDER / "ddp.json")
    for name in ("--rank", "--address", "--interface"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        process(int(given.rank), given.address, given.interface, given.out)
        return 0
    if reason := link.obstacle():
        print(f"bench.ddp: expected Linux with root's rights and iproute2, got: {reason}", file=sys.stderr)
        return 2
    rows = summary(measure(given.out.parent))
    setting = {"model": "vgg11", "image": SIZE, "images_per_process": BATCH, "threads": 1, "rate": RATE, "rounds": ROUNDS}
    content = {"format": FORMAT, "environment": provenance("cpu"), "setting": setting, "rows": rows}
    with replacing(given.out) as handle:
        handle.write(json.dumps(content, indent=1).encode())
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

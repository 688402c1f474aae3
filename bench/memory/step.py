"""One step of one network in one way, in a process of its own: python -m bench.memory.step NETWORK MODE WAY prints JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bench.memory.networks import NETWORKS, NETWORKS_BY_MODE, Network
from bench.results import ROOT


def measure(network: str, mode: str, way: str) -> dict[str, Any]:
    """The row: bytes that forward keeps, and the most that the process took in a step above what it had before."""
    found = NETWORKS[network]
    model = NETWORKS_BY_MODE[mode]["ways"](found)[way](found.make())
    kept = kept_bytes(found, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.001)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reset_peak()
    start = status("VmRSS")
    found.loss(model).backward()
    optimizer.step()
    peak = status("VmHWM") - start
    moved = sorted({name for name, p in model.named_parameters() if not torch.equal(p, before[name])})
    weights = [name for name in moved if name.endswith("weight") and before[name].ndim > 1]
    assert bool(weights) == (way == "dense"), f"{way}: expected biases alone to move, got {weights[:3]}"
    return {"network": network, "mode": mode, "way": way, "kept_bytes": kept, "peak_bytes": peak, "moved": len(moved)}


def kept_bytes(network: Network, model: nn.Module) -> int:
    """The storages that autograd keeps, each once, without parameters and buffers; those too that functions of Python keep as
    attributes of their own, past ``save_for_backward``."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        loss = network.loss(model)
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            for value in getattr(node, "__dict__", {}).values():
                if isinstance(value, Tensor):
                    pack(value)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def status(name: str) -> int:
    """A size of this process, in bytes: VmRSS, what it has, or VmHWM, the most that it had."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def reset_peak() -> None:
    """Has the most that the process had begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def in_a_process(network: str, mode: str, way: str, environment: dict[str, str]) -> dict[str, Any]:
    """The row, measured by a process of its own."""
    command = [sys.executable, "-m", "bench.memory.step", network, mode, way]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if result.returncode:
        raise RuntimeError(f"{network}, {mode}, {way}: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:4])))

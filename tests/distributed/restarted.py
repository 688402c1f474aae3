"""Programs for torchrun that lose a process in their first life: ``restarted.py RANK FORWARDS train ...`` is the command line
of wuskern, ``restarted.py RANK FORWARDS FOLDER`` a loop of a user's own, with a policy, rows by scores and a checkpoint."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from wuskern import cli

EPOCHS, STEPS, METRICS = 6, 4, (0.5, 0.5, 0.5, 0.9, 0.2, 0.2)


def die_at(rank: int, forwards: int) -> None:
    """Has this rank kill itself at that forward of a DDP, unless torchrun has started it again."""
    if os.environ["RANK"] != str(rank) or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return
    left, original = [forwards], DistributedDataParallel.forward

    def forward(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    DistributedDataParallel.forward = forward


def train(folder: Path) -> None:
    """Writes ``end.pt`` at the end, ``last.pt`` after each epoch, and goes on from that."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4)).double())
    wk.set_rows(model, wk.TopK(k=3))
    ddp = DistributedDataParallel(model)
    prepared = wk.distributed.prepare(ddp)
    optimizer = wk.optim.AdamW(model.parameters(), 0.1)
    policy = wk.policies.WUS(model, warmup=0, window=2, threshold=0.1, patience=2, guard=1.0)
    policy.attach(optimizer)
    parts = {"model": model, "optimizer": optimizer, "policy": policy, "prepared": prepared}
    begin, skipped = 0, []
    if (folder / "last.pt").exists():
        state = torch.load(folder / "last.pt")
        begin, skipped = state.pop("epochs"), state.pop("skipped")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in range(begin, EPOCHS):
        for step in range(STEPS):
            draw = torch.Generator().manual_seed(100 * epoch + 10 * step + rank)
            optimizer.zero_grad()
            ddp(torch.randn(5, 3, generator=draw, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        skipped.append(model[0].skip)
        policy.step(wk.distributed.broadcast_metric(METRICS[epoch]))
        state = {name: part.state_dict() for name, part in parts.items()}  # in all processes: scores are added up
        if rank == 0:
            torch.save(state | {"epochs": epoch + 1, "skipped": skipped}, folder / "new.pt")
            (folder / "new.pt").rename(folder / "last.pt")
        dist.barrier()
    if rank == 0:
        torch.save((model.state_dict(), skipped, begin), folder / "end.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    die_at(int(sys.argv[1]), int(sys.argv[2]))
    if sys.argv[3] == "train":
        sys.exit(cli.main(sys.argv[3:]))
    train(Path(sys.argv[3]))

"""Two processes that Lightning starts train under its DDP, and then by a loop of one's own, and compare the two.

python -m tests.integrations.lightning_ranks FOLDER
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.integrations import lit, test_lightning_steps
from wuskern.integrations.lightning import WuskernCallback

EPOCHS, WORLD = 4, 2
# The method, and whether DDP is prepared.
CASES = {
    "skips": ("WUS", False),
    "skips, prepared": ("WUS", True),
    "rows": ("rows", False),
    "compact rows, prepared": ("compact rows", True),
    "masks": ("masks", False),
    "a frozen prefix": ("a frozen prefix", False),
}


class Share(lit.ByEpoch):
    """The part of an epoch's order that belongs to this process."""

    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[dist.get_rank() :: WORLD])

    def __len__(self) -> int:
        return self.samples // WORLD


class Ranked(lit.Lit):
    """Each process has a metric of its own: that of the first one stands still."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", 0.5 + 0.1 * self.global_rank * self.current_epoch, batch_size=1)


def by_lightning(case: str, folder: str, resume: Any = None) -> tuple[Any, WuskernCallback]:
    method, prepared = CASES[case]
    make, optimizer = test_lightning_steps.METHODS[method]
    module = Ranked(optimizer=optimizer)
    callback = WuskernCallback(lambda model, optimizer: make(model.net, optimizer), "accuracy", prepare_ddp=prepared)
    strategy = "ddp_find_unused_parameters_true" if method == "a frozen prefix" else "ddp"
    kept = lit.L.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    given = dict(max_epochs=EPOCHS, devices=WORLD, use_distributed_sampler=False, enable_checkpointing=True)
    lit.fit(module, callback, kept, data=lit.loader(sampler=Share()), resume=resume, strategy=strategy, **given)
    return module, callback


def by_hand(case: str) -> tuple[Any, Any]:
    method, prepared = CASES[case]
    make, optimizer_of = test_lightning_steps.METHODS[method]
    net = lit.network()
    ddp = DistributedDataParallel(net, find_unused_parameters=method == "a frozen prefix")
    if prepared:
        wk.distributed.prepare(ddp)
    optimizer = optimizer_of(net)
    policy = make(net, optimizer)
    policy.attach(optimizer)
    sampler = Share()
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for number, index in enumerate(torch.tensor(list(sampler)).split(lit.BATCH)):
            torch.manual_seed(lit.seed_of(epoch, number))
            policy.before_step()
            optimizer.zero_grad()
            F.cross_entropy(ddp(lit.X[index]), lit.Y[index]).backward()
            optimizer.step()
            policy.after_step()
        with torch.no_grad():
            ddp.eval()(lit.X)  # which gives all processes the first one's running means
        ddp.train()
        if policy.evaluates:
            policy.step(0.5)
        policy.after_epoch()
    return net, policy


def compare(case: str, folder: str) -> None:
    """Raises ``AssertionError`` for a training that is not that by hand."""
    module, callback = by_lightning(case, folder)
    resumed, other = by_lightning(case, folder, f"{folder}/epoch=0.ckpt")  # three steps: scores wait for a fourth
    net, policy = by_hand(case)
    for trained, of_trained in ((module, callback), (resumed, other)):
        test_lightning_steps.assert_same(trained, of_trained, net, policy)
    if policy.evaluates:
        assert policy.history == [0.5] * EPOCHS
    first = net[0].weight.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, net[0].weight)


def compared(case: str, folder: str) -> str:
    try:
        compare(case, folder)
    except AssertionError:
        return traceback.format_exc()
    return "same"


def main(folder: str) -> None:
    """Writes into the folder, for each process, what it found of each case: "same", or what is wrong."""
    torch.set_num_threads(1)
    found = {}
    for number, case in enumerate(CASES):
        found[case] = compared(case, f"{folder}/{number}")
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()  # the first process ends when both have written


if __name__ == "__main__":
    main(sys.argv[1])

"""DDP that sends only what was computed.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk

dist.init_process_group("gloo")
torch.manual_seed(0)  # the same model everywhere
model = wk.convert(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)))
ddp = DistributedDataParallel(model)
wk.distributed.prepare(ddp)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
policy = wk.policies.WUS(model, warmup=0, window=1, threshold=0.1)
policy.attach(optimizer)
data = torch.Generator().manual_seed(dist.get_rank())  # other data in each process
for epoch in range(6):
    x = torch.randn(256, 64, generator=data)
    y = x[:, :10].argmax(1)
    for part, wanted in zip(x.split(32), y.split(32), strict=True):
        policy.before_step()
        nn.functional.cross_entropy(ddp(part), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.after_step()
    policy.after_epoch()
    accuracy = wk.distributed.broadcast_metric((model(x).argmax(1) == y).float().mean().item())
    skips = policy.step(accuracy)
    if dist.get_rank() == 0:
        print(f"epoch {epoch}: {accuracy:.1%}, next {'only biases are sent' if skips else 'everything is sent'}")
dist.destroy_process_group()

"""Fine-tunes with a frozen front whose outputs are computed once for each sample: a cache of activations.

python examples/frozen_cache.py [--epochs 6]
"""

import argparse
import time

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

import wuskern as wk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=6)
given = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(x + self.block(x)))


torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
model = wk.convert(Net())
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
freezing = wk.policies.SingleShotFreezing(model, x[:2], at=2, share=0.6)  # of the five layers, after two epochs
freezing.attach(optimizer)
cache = wk.policies.ActivationCache(freezing, x)
for epoch in range(given.epochs):
    begin, right = time.perf_counter(), 0
    for index in torch.randperm(len(x)).split(64):
        freezing.before_step()
        logits = cache(index)  # in place of model(x[index])
        nn.functional.cross_entropy(logits, y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        freezing.after_step()
        right += int((logits.argmax(1) == y[index]).sum())
    seconds = time.perf_counter() - begin
    freezing.after_epoch()
    kept = (
        f"{cache.layers} layers not run, {cache.nbytes / 2**20:.0f} MiB"
        if cache.layers
        else cache.reason or "kept from the next one on"
    )
    print(f"epoch {epoch}: {right / len(x):.1%}, {seconds:.2f} s; {freezing.depth} layers frozen next; {kept}")

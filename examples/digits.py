"""Trains a small network on scikit-learn's digits by a loop of one's own; run it again to go on from its checkpoint.

python examples/digits.py [--method wus] [--epochs 20] [--checkpoint digits.pt]
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

import wuskern as wk


def windows(model):
    return wk.policies.WUS(model, warmup=3, threshold=0.02)


def rows(model):
    return wk.policies.MeProp(model, ratio=0.2)


METHODS = {
    "dense": lambda model: None,
    "wus": windows,
    "meprop": rows,
    "both": lambda model: wk.policies.Compose([windows(model), rows(model)]),
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--method", choices=METHODS, default="wus")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--checkpoint", type=Path, default=Path("digits.pt"))
given = parser.parse_args()

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
x, y, x_test, y_test = x[360:], y[360:], x[:360], y[:360]
model = wk.convert(nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10)))
optimizer = wk.optim.AdamW(model.parameters(), lr=1e-3)
policy = METHODS[given.method](model)
if policy:
    policy.attach(optimizer)

first = 0
if given.checkpoint.exists():
    state = torch.load(given.checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if policy:
        policy.load_state_dict(state["policy"])
    first = state["epoch"]

for epoch in range(first, given.epochs):
    begin = time.perf_counter()
    for index in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
        if policy:
            policy.before_step()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if policy:
            policy.after_step()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    if policy:
        policy.after_epoch()
        policy.step(accuracy)
    print(f"epoch {epoch}: {accuracy:.1%}, {seconds:.2f} s; next: {model[0].plan}")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
    torch.save(state | ({"policy": policy.state_dict()} if policy else {}), given.checkpoint)

"""Trains on one task, and then fine-tunes biases and a new head alone on another (BitFit).

python examples/bitfit.py [--epochs 5]
"""

import argparse

import torch
import torch.nn as nn
from sklearn.datasets import load_digits

import wuskern as wk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
given = parser.parse_args()

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, digit = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
body = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()
)
model = wk.convert(nn.Sequential(body, nn.Linear(512, 10)))


def train(optimizer, y, epochs):
    for epoch in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            model.zero_grad()
        with torch.no_grad():
            print(f"epoch {epoch}: {(model(x).argmax(1) == y).float().mean():.1%} of the training images")


print("which digit, all weights:")
train(torch.optim.AdamW(model.parameters(), lr=3e-3), digit, given.epochs)

model[1] = wk.convert(nn.Linear(512, 2))
wk.set_skip(body, True)  # no weight gradient in the body: its backward computes gradients of inputs and biases
moving = [p for name, p in model.named_parameters() if name.endswith("bias") or name.startswith("1.")]
before = [layer.weight.clone() for layer in body if hasattr(layer, "weight")]
print(f"under five or not, {sum(p.numel() for p in moving)} of {sum(p.numel() for p in model.parameters())} parameters:")
train(torch.optim.AdamW(moving, lr=3e-3), (digit < 5).long(), given.epochs)
assert all(torch.equal(a, layer.weight) for a, layer in zip(before, (body[0], body[2]), strict=True))

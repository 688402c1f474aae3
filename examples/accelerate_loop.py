"""Trains a small network on scikit-learn's digits by a loop with accelerate; run it again to go on from its checkpoint.

python examples/accelerate_loop.py [--epochs 10]
"""

import argparse
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import wuskern as wk
from wuskern.integrations.accelerate import accumulate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--out", type=Path, default=Path("accelerated"))
given = parser.parse_args()

set_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
model = wk.convert(nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10)))
policy = wk.policies.Compose([wk.policies.WUS(model, warmup=3, threshold=0.02), wk.policies.MeProp(model, ratio=0.2)])

accelerator = Accelerator(gradient_accumulation_steps=2)
model, optimizer, train, test = accelerator.prepare(
    model,
    wk.optim.AdamW(model.parameters(), lr=1e-3),
    DataLoader(TensorDataset(x[360:], y[360:]), 32, shuffle=True),
    DataLoader(TensorDataset(x[:360], y[:360]), 360),
)
policy.attach(optimizer)
accelerator.register_for_checkpointing(policy)
first = 0
if given.out.exists():
    accelerator.load_state(str(given.out))
    first = int((given.out / "epochs.txt").read_text())

for epoch in range(first, given.epochs):
    for inputs, targets in train:
        with accumulate(accelerator, policy, model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        right = [accelerator.gather_for_metrics(model(inputs).argmax(1) == targets) for inputs, targets in test]
    accuracy = torch.cat(right).float().mean().item()
    policy.after_epoch()
    skips = policy.step(accuracy)  # the same number in all processes
    accelerator.print(f"epoch {epoch}: {accuracy:.1%}, next {'only biases train' if skips else 'a part of each weight trains'}")
    accelerator.save_state(str(given.out))
    (given.out / "epochs.txt").write_text(str(epoch + 1))

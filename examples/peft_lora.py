"""Adapts a frozen network to scikit-learn's digits: LoRA in its head, biases in its convolutions, which skip their weights.

python examples/peft_lora.py [--epochs 5] [--stock]
"""

import argparse
import time

import torch
import torch.nn as nn
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits

import wuskern as wk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--stock", action="store_true", help="without wuskern")
given = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(1024, 10)

    def forward(self, x):
        return self.head(self.front(x))


torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
model = get_peft_model(Net(), LoraConfig(r=8, target_modules=["head"], bias="all"))
if not given.stock:
    wk.convert(model)
    wk.set_skip(model, True)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{trains} of {sum(p.numel() for p in model.parameters())} parameters train")
for epoch in range(given.epochs):
    begin = time.perf_counter()
    for index in torch.randperm(len(x) - 360).split(64):
        nn.functional.cross_entropy(model(x[360 + index]), y[360 + index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        accuracy = (model(x[:360]).argmax(1) == y[:360]).float().mean().item()
    print(f"epoch {epoch}: {accuracy:.1%}, {seconds:.2f} s")

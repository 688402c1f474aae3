"""Lightning trains a small network on scikit-learn's digits under a method of wuskern; run it again to go on.

python examples/lightning_loop.py [--policy wus:warmup=2] [--epochs 8] [--folder lightning_loop]
"""

import argparse
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import wuskern as wk
from wuskern.integrations.lightning import WuskernCallback


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10))
        self.example_input_array = torch.zeros(2, 64)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return wk.optim.AdamW(self.parameters(), lr=1e-3)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--policy", default="wus:warmup=2:threshold=.02")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--folder", type=Path, default=Path("lightning_loop"))
given = parser.parse_args()

L.seed_everything(0)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
test, train = torch.utils.data.Subset(data, range(360)), torch.utils.data.Subset(data, range(360, len(data)))
callback = WuskernCallback(given.policy, metric="val_acc")
last = L.callbacks.ModelCheckpoint(given.folder, save_last=True)
trainer = L.Trainer(max_epochs=given.epochs, callbacks=[callback, last], logger=False, accelerator="cpu", devices=1)
resume = given.folder / "last.ckpt"
trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(test, 360), ckpt_path=resume if resume.exists() else None)
print(f"epoch {trainer.current_epoch}: {trainer.callback_metrics.get('val_acc', float('nan')):.1%}; {callback.policy}")

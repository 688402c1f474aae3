"""Fine-tunes a network of timm as its training script does: its optimizer, its schedule, its loss, its average of weights.

python examples/timm_finetune.py [--model resnet18] [--epochs 6] [--size 32] [--images 1797]
"""

import argparse

import timm
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
from sklearn.datasets import load_digits

import wuskern as wk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="resnet18")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--images", type=int, default=1797)
given = parser.parse_args()

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[: given.images], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
x, y = torch.nn.functional.interpolate(x, given.size).expand(-1, 3, -1, -1), torch.tensor(labels[: given.images])
held_out = len(x) // 5
model = wk.convert(timm.create_model(given.model, pretrained=False, num_classes=10))  # pretrained=True downloads
print(f"{given.model}: {wk.survey(model).share:.0%} of the weights are in converted layers")
optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
schedule, _ = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=given.epochs)
average = timm.utils.ModelEmaV3(model, decay=0.9)
loss_of = timm.loss.LabelSmoothingCrossEntropy(0.1)
policy = wk.policies.WUS(model, warmup=2, threshold=0.02)
policy.attach(optimizer)
for epoch in range(given.epochs):
    losses = timm.utils.AverageMeter()
    model.train()
    for index in (torch.randperm(len(x) - held_out) + held_out).split(64):
        policy.before_step()
        loss = loss_of(model(x[index]), y[index])
        loss.backward()
        timm.utils.dispatch_clip_grad(model.parameters(), value=1.0)
        optimizer.step()
        optimizer.zero_grad()
        policy.after_step()
        average.update(model)
        losses.update(loss.item(), len(index))
    schedule.step(epoch + 1)
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[:held_out]).argmax(1) == y[:held_out]).float().mean().item()
    policy.after_epoch()
    skips = policy.step(accuracy)  # a share; timm.utils.accuracy gives percent: threshold and guard are then 100 times as large
    print(f"epoch {epoch}: loss {losses.avg:.3f}, {accuracy:.1%}; next {'biases and norms' if skips else 'everything'}")

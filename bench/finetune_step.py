"""A step of fine-tuning a transformer of MiniLM's shape, by several methods: seconds, and what forward keeps for backward.

    python -m bench.finetune_step [--out bench/results/finetune-step.json] [--rounds 11]

6 layers of 384, 16 x 128 tokens, AdamW; weights at random, since neither time nor memory depends on their values. Float32, and
bfloat16 autocast. LoRA is peft's, where that can be imported. "dense" trains everything; the others leave the embeddings alone;
LoRA, rows and columns leave biases and norms alone, too. Every variant trains a model of its own and is verified first: what it
says trains moves, and nothing else. Variants are interleaved; medians over rounds, ratios within rounds.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from bench.results import FOLDER, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.bench.turns import iqr
from wuskern.modules import skippable_layers
from wuskern.train.results import replace

FORMAT = 1
BATCH, LENGTH, CLASSES = 16, 128, 20
RATIO, RANK = 0.05, 8
WARM_UP, ROUNDS = 2, 11
PEERS = ("dense", "bias-only, stock", "LoRA r8, all Linears", "LoRA r8, query and value")
OURS = ("skip", "rows 5 %", "columns 5 %", "columns 5 %, blocks of 16", "block of one layer")


def network() -> nn.Module:
    """A BERT of MiniLM's shape that classifies."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**shape, num_labels=CLASSES)).train()


# ---- methods: each changes a model, and makes its optimizer ----------------------------------------------------------


def _but_embeddings(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name or "LayerNorm" in name)
    return model


def _body(module: nn.Module, name: str) -> bool:
    return name.startswith("bert.encoder")


def _ours(**parts: Any) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        wk.set_plan(wk.convert(_but_embeddings(model)), filter_fn=_body, **parts)
        return model

    return change


def _bias_only(model: nn.Module) -> nn.Module:
    for module in _but_embeddings(model).bert.encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.requires_grad_(False)
    return model


def _fixed_part(axis: str, block: int = 1) -> Callable[[nn.Module], nn.Module]:
    """Fixed rows or columns of each layer, drawn at random, as PaCA has them."""

    def change(model: nn.Module) -> nn.Module:
        for name, parameter in wk.convert(model).named_parameters():
            is_weight = _body(model, name) and name.endswith("weight") and "LayerNorm" not in name
            parameter.requires_grad_(is_weight or name.startswith("classifier"))
        draw = torch.Generator().manual_seed(1)
        for name, layer in skippable_layers(model).items():
            if not _body(layer, name):
                continue
            size = layer.out_features if axis == "rows" else layer.in_features
            blocks = torch.randperm(size // block, generator=draw)[: max(1, int(RATIO * size / block))]
            index = (blocks[:, None] * block + torch.arange(block)).flatten()
            wk.set_plan(layer, **{axis: (wk.Rows if axis == "rows" else wk.Columns)(index)})
        return model

    return change


def _block(model: nn.Module) -> nn.Module:
    _ours(skip=True)(model)
    wk.set_skip(model.bert.encoder.layer[3], False)
    return model


def _lora(targets: Any) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, target_modules=targets, modules_to_save=["classifier"])
        return get_peft_model(model, config)

    return change


LINEARS = ["query", "key", "value", "dense"]
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "dense": lambda model: model,
    "bias-only, stock": _bias_only,
    "LoRA r8, all Linears": _lora(LINEARS),
    "LoRA r8, query and value": _lora(["query", "value"]),
    "skip": _ours(skip=True),
    "rows 5 %": _fixed_part("rows"),
    "columns 5 %": _fixed_part("columns"),
    "columns 5 %, blocks of 16": _fixed_part("columns", 16),
    "block of one layer": _block,
}


class Variant:
    """One method, the model that it trains, and its optimizer."""

    def __init__(self, method: str, autocast: bool) -> None:
        self.method, self.autocast = method, autocast
        self.model = METHODS[method](network())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        kind = wk.optim.AdamW if method in OURS else torch.optim.AdamW
        self.optimizer = kind(trained, lr=1e-4, fused=True)

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        context = torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with context:
            return self.model(input_ids=ids, labels=labels).loss

    def step(self, ids: Tensor, labels: Tensor) -> float:
        start = time.perf_counter()
        self.loss(ids, labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def kept_bytes(self, ids: Tensor, labels: Tensor) -> int:
        """The bytes that forward keeps for backward, each storage once, without the parameters."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(t: Tensor) -> Tensor:
            if t.untyped_storage().data_ptr() not in own:
                kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = self.loss(ids, labels)
        total = sum(t.untyped_storage().nbytes() for t in kept.values())
        del loss
        return total

    def state_bytes(self) -> int:
        tensors = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        return sum(t.nbytes for t in tensors)


def verify(variant: Variant, ids: Tensor, labels: Tensor) -> None:
    """One step. Raises ``AssertionError`` where the share of the body's weights that moved is not what the method says."""
    if variant.method.startswith("LoRA"):
        return
    linears = [m for m in variant.model.bert.encoder.modules() if isinstance(m, nn.Linear)]
    before = [m.weight.detach().clone() for m in linears]
    variant.step(ids, labels)
    moved = sum(int((m.weight != old).sum()) for m, old in zip(linears, before, strict=True))
    share = moved / sum(m.weight.numel() for m in linears)
    least, most = {"dense": (0.9, 1), "bias-only, stock": (0, 0), "skip": (0, 0), "block of one layer": (0.15, 0.17)}.get(
        variant.method, (0.8 * RATIO, 1.05 * RATIO)
    )
    assert least <= share <= most, f"{variant.method}: {share:.1%} of the weights moved"


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(autocast: bool, rounds: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(0, 30522, (BATCH, LENGTH), generator=draw), torch.randint(0, CLASSES, (BATCH,), generator=draw)
    has_peft = importlib.util.find_spec("peft") is not None
    variants = {method: Variant(method, autocast) for method in METHODS if has_peft or not method.startswith("LoRA")}
    seconds: dict[str, list[float]] = {method: [] for method in variants}
    for variant in variants.values():
        verify(variant, ids, labels)
    kept = {method: variant.kept_bytes(ids, labels) for method, variant in variants.items()}
    for turn in range(WARM_UP + rounds):
        order = [*variants]
        for method in order[turn % len(order) :] + order[: turn % len(order)]:
            taken = variants[method].step(ids, labels)
            if turn >= WARM_UP:
                seconds[method].append(taken)
    return [_row(method, variant, seconds, kept, autocast) for method, variant in variants.items()]


def _row(
    method: str, variant: Variant, seconds: dict[str, list[float]], kept: dict[str, int], autocast: bool
) -> dict[str, Any]:
    mine = seconds[method]
    over = {
        peer: round(statistics.median(a / b for a, b in zip(mine, seconds[peer], strict=True)), 3)
        for peer in PEERS
        if peer in seconds
    }
    return {
        "method": method,
        "dtype": "bfloat16 autocast" if autocast else "float32",
        "step_ms": round(1e3 * statistics.median(mine), 2),
        "spread": round(iqr(mine) / statistics.median(mine), 4),
        "time_of": over,
        "kept_mib": round(kept[method] / 2**20, 1),
        "kept_of_dense": round(kept[method] / kept["dense"], 3),
        "kept_of_skip": round(kept[method] / kept["skip"], 3),
        "state_mib": round(variant.state_bytes() / 2**20, 2),
    }


def render(content: dict[str, Any]) -> str:
    peers = [peer for peer in PEERS if peer in content["rows"][0]["time_of"]]
    head = ["dtype", "method", "step, ms", *(f"of {peer}" for peer in peers), "kept by forward, MiB", "optimizer state, MiB"]
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for r in content["rows"]:
        times = (f"{r['time_of'][peer]:.2f}x" for peer in peers)
        cells = [r["dtype"], r["method"], f"{r['step_ms']:.0f}", *times, f"{r['kept_mib']:.0f}", f"{r['state_mib']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    e = content["environment"]
    return "\n".join(lines) + f"\n\n{e['processor']}, {e['threads']} threads, torch {e['torch']}, {content['rounds']} rounds."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.finetune_step", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "finetune-step.json", help="results, JSON [%(default)s]")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    settle_allocator()
    rows = [row for autocast in (False, True) for row in measure(autocast, arguments.rounds)]
    content = {"format": FORMAT, "environment": provenance("cpu"), "rounds": arguments.rounds, "rows": rows}
    replace(arguments.out, json.dumps(content, indent=1))
    print(render(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What ``wk.profile`` composes of a model's layers, against whole steps measured in a run of their own.

    python -m bench.profile [--out bench/results/profile.json] [--seconds 150] [--models bert-base,gpt2]

Five networks with weights at random, since time does not depend on their values: BERT-base, GPT-2 of transformers, ResNet-50,
EfficientNet-B0, ViT-S of timm, which may lie in a folder ``torchvision`` beside the environment's ``lib``. Two processes
each have a model of their own: one profiles it, the other times dense steps and steps that skip, in turn, by a loop that has
nothing of the profile, having verified the gradients first. Of both the share of a dense step that a skip saves: the one put
together from seconds of layers, the other a median of ratios of whole steps.

glibc gives memory back where it lies at the end of the heap, and large blocks always: in one process the gradients of a dense
step cost tens of thousands of page faults, in another none, by where other blocks happen to lie. Here it gives nothing back.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from bench.results import FOLDER, provenance
from wuskern.bench.turns import iqr
from wuskern.modules import skippable_layers
from wuskern.profile import step
from wuskern.train.results import replace

FORMAT = 1
SECONDS = 150.0  # of each profile, and of each loop of whole steps
WITHIN = 0.1  # of the saving of whole steps
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}  # of glibc
CLASSES, WARM_UP, LEAST = 10, 2, 3
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}  # the latter for one thread, on a machine that is not idle
Case = tuple[nn.Module, Any, Callable[[Any], Tensor] | None]  # a model, its batch, and its loss; None: the model's own


def bert_base(small: bool) -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128) if small else {}
    model = BertForSequenceClassification(BertConfig(num_labels=CLASSES, **shape))
    return model, _tokens(2, 16 if small else 128, 30522) | {"labels": torch.arange(2) % CLASSES}, None


def gpt2(small: bool) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = dict(n_embd=64, n_layer=2, n_head=2, vocab_size=512) if small else {}
    batch = _tokens(1, 16 if small else 128, 512 if small else 50257)
    return GPT2LMHeadModel(GPT2Config(**shape)), batch | {"labels": batch["input_ids"]}, None


def _tokens(batch: int, length: int, vocabulary: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, vocabulary, (batch, length))}


def _of_timm(name: str, batch: int, side: int) -> Callable[[bool], Case]:
    def make(small: bool) -> Case:
        timm = _timm()
        labels = torch.arange(batch) % CLASSES
        smaller = {} if "vit" not in name else {"img_size": 32 if small else side}
        model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **smaller)
        return model, torch.randn(batch, 3, *[32 if small else side] * 2), lambda scores: F.cross_entropy(scores, labels)

    return make


def _timm() -> Any:
    """The package timm. PyPI's torchvision, which it imports, is built for CUDA: beside a torch without it, two operations are
    missing that no network here calls."""
    if importlib.util.find_spec("torchvision") is not None and torch.version.cuda is None:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")


MODELS: dict[str, Callable[[bool], Case]] = {
    "bert-base": bert_base,
    "gpt2": gpt2,
    "resnet50": _of_timm("resnet50", 4, 160),
    "efficientnet_b0": _of_timm("efficientnet_b0", 8, 160),
    "vit_small": _of_timm("vit_small_patch16_224", 4, 224),
}
OF_TRANSFORMERS = ("bert-base", "gpt2")


def case(name: str, small: bool) -> Case:
    torch.manual_seed(0)
    model, batch, loss = MODELS[name](small)
    return model.train(), batch, loss


# ---- a process for each part ----------------------------------------------------------------------------------------


def composed(name: str, seconds: float, small: bool) -> dict[str, Any]:
    """What the profile says."""
    model, batch, loss = case(name, small)
    found = wk.profile(model, batch, loss=loss, seconds=seconds)
    print(found, file=sys.stderr)
    assert found.composed is not None, f"{name}: expected the seconds of layers, got no time for them"
    assert not any("gradients" in note for note in found.notes), f"{name}: {found.notes}"
    return {
        "composed": found.composed,
        "measured_beside": found.measured,
        "rounds": found.rounds,
        "verdict": found.verdict,
        "share": found.share,
        "outside": found.outside / found["dense"].seconds,
        "ways": {way.name: {"of_dense": way.of_dense, "kept": way.kept, "peak": way.peak} for way in found.ways},
        "did_not_fit": found.did_not_fit,
    }


def whole_steps(name: str, seconds: float, small: bool) -> dict[str, Any]:
    """The share of a dense step that a skip saves, of whole steps."""
    model, batch, loss = case(name, small)
    args, kwargs = ((batch,), {}) if isinstance(batch, Tensor) else ((), batch)
    clock, optimizer = step.CLOCK, torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run(skip: bool) -> float:
        wk.set_skip(model, skip)
        model.zero_grad()
        begin = clock()
        output = model(*args, **kwargs)
        (output.loss if loss is None else loss(output)).backward()
        return clock() - begin

    def train(skip: bool) -> float:
        seconds = run(skip)
        optimizer.step()  # not timed: its state is why the memory of gradients lies where it does in a training
        return seconds

    verify(wk.convert(model), run)
    taken: dict[bool, list[float]] = {False: [], True: []}
    end, turn = time.perf_counter() + seconds, 0
    while turn < WARM_UP + LEAST or time.perf_counter() < end:
        for skip in (False, True) if turn % 2 else (True, False):
            one = train(skip)
            if turn >= WARM_UP:
                taken[skip].append(one)
        turn += 1
    ratios = [skipped / dense for skipped, dense in zip(taken[True], taken[False], strict=True)]
    return {
        "measured": 1 - statistics.median(ratios),
        "spread": iqr(ratios),
        "steps": len(ratios),
        "dense_ms": 1e3 * statistics.median(taken[False]),
        "skip_ms": 1e3 * statistics.median(taken[True]),
    }


def verify(model: nn.Module, run: Callable[[bool], float]) -> None:
    """Raises ``AssertionError`` where a skip computes a weight's gradient, or changes that of something else."""
    weights = {layer.weight for layer in skippable_layers(model).values()}
    own = {p for m in model.modules() if not hasattr(m, "plan") for p in m.parameters(recurse=False)}  # tied ones, and all else
    torch.manual_seed(0)
    run(False)
    dense = {name: p.grad for name, p in model.named_parameters()}
    noise = 1e-5 * float(torch.stack([grad.norm() for grad in dense.values()]).norm())
    torch.manual_seed(0)
    run(True)
    for name, parameter in model.named_parameters():
        if parameter in weights - own:
            assert parameter.grad is None, f"{name}: expected no gradient"
        elif parameter not in weights:
            error = float((parameter.grad - dense[name]).norm())
            assert error <= 1e-3 * float(dense[name].norm()) + noise, f"{name}: {error} from dense"


PARTS = {"composed": composed, "whole": whole_steps}


def _in_a_process(name: str, part: str, a: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        words = ["--model", name, "--part", part, "--out", str(path), "--seconds", str(a.seconds), "--clock", a.clock]
        words += ["--small"] if a.small else []
        subprocess.run([sys.executable, "-m", "bench.profile", *words], check=True, env=_environment(name))
        return json.loads(path.read_text())


def _environment(name: str) -> dict[str, str]:
    """The variables for a process: what keeps memory; timm's folder is on the path for its models alone, as transformers does
    not bear it."""
    found = os.environ | KEEPS_MEMORY
    folder = Path(sys.prefix) / "torchvision"
    if name not in OF_TRANSFORMERS and importlib.util.find_spec("timm") is None and folder.is_dir():
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [found.get("PYTHONPATH"), str(folder)]))
    return found


# ---- the whole ------------------------------------------------------------------------------------------------------


def measure(names: list[str], a: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        row = {"model": name} | _in_a_process(name, "composed", a) | _in_a_process(name, "whole", a)
        rows.append(row | {"apart": abs(row["composed"] / row["measured"] - 1)})
        print(f"{name}: composed {row['composed']:.1%}, whole steps {row['measured']:.1%}", file=sys.stderr)
    return rows


def render(content: dict[str, Any]) -> str:
    head = ["model", "weights", "outside", "a skip saves, of layers", "of whole steps", "apart", "kept by forward", "verdict"]
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for r in content["rows"]:
        apart = f"{r['apart']:.0%}" if r["apart"] <= WITHIN else f"**{r['apart']:.0%}**"
        kept = r["ways"]["skip"]["kept"] / r["ways"]["dense"]["kept"]
        shares = (f"{r[name]:.0%}" for name in ("share", "outside"))
        cells = [r["model"], *shares, f"{r['composed']:.1%}", f"{r['measured']:.1%}", apart, f"{kept:.0%}", r["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    e, clock = content["environment"], "" if content["clock"] == "wall" else ", seconds of the processor"
    return "\n".join(lines) + f"\n\n{e['processor']}, {e['threads']} threads, torch {e['torch']}{clock}."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "profile.json", help="results, JSON [%(default)s]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each of the two parts of a model [%(default)s]")
    parser.add_argument("--models", default=",".join(MODELS), help="[%(default)s]")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: for one thread on a busy machine")
    parser.add_argument("--small", action="store_true", help="networks that take no time, to try this file")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    step.CLOCK = CLOCKS[a.clock]
    if a.part is not None:
        a.out.write_text(json.dumps(PARTS[a.part](a.model, a.seconds, a.small)))
        return 0
    rows = measure(a.models.split(","), a)
    about = {"seconds": a.seconds, "clock": a.clock, "small": a.small}
    content = {"format": FORMAT, "environment": provenance("cpu"), **about, "rows": rows}
    replace(a.out, json.dumps(content, indent=1))
    print(render(content))
    return 0 if all(row["apart"] <= WITHIN for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

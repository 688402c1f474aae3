"""Fine-tuning on a budget: on a tiny random model, what each method trains, and that ours equals its control."""

import json

import pytest
import torch
import torch.nn.functional as F

from bench.finetune.efficientnet_lite import EfficientNetLite0, SameConv, load
from bench.finetune.grid import Plan, Runs, difference, measure
from bench.finetune.methods import METHODS, OURS
from bench.finetune.tasks import TASKS
from bench.finetune.training import Run, run

pytest.importorskip("transformers")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def task():
    return TASKS["tiny"](None)


def prepared(task, method):
    if method == "LoRA r8":
        pytest.importorskip("peft", reason="peft is not installed: make test-more installs it")
    return METHODS[method](task.make(0).train(), task, 0)


def steps(task, method, count=4):
    """The model, and its parameters before and after so many steps."""
    ready = prepared(task, method)
    before = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    optimizer = ready.optimizer(ready.trained, lr=1e-3, weight_decay=0.01)
    if ready.policy is not None:
        ready.policy.attach(optimizer)
    torch.manual_seed(1)
    for index in torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[: 16 * count].split(16):
        if ready.policy is not None:
            ready.policy.before_step()
        F.cross_entropy(ready.forward(index), task.train.labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if ready.policy is not None:
            ready.policy.after_step()
    return ready, before, dict(ready.model.named_parameters())


# The share of the body's weight matrices that moves: of three blocks, one of which is the front.
MOVES = {
    "dense": (0.99, 1), "BitFit, stock": (0, 0), "prefix, plain PyTorch": (0.66, 0.67), "prefix+cache": (0.66, 0.67),
    "prefix+cache, thawed": (0.66, 0.67), "columns 5 %": (0.03, 0.07), "rows 5 %": (0.03, 0.07), "S2FT": (0.03, 0.07),
    "LISA": (0.66, 0.67),
}  # fmt: skip


@pytest.mark.parametrize("method", MOVES)
def test_a_method_moves_what_it_says(task, method):
    _, before, after = steps(task, method)
    body = [name for name, p in after.items() if name.startswith(task.body) and p.ndim > 1]
    moved = sum(int((after[name] != before[name]).sum()) for name in body)
    low, high = MOVES[method]
    assert low <= moved / sum(after[name].numel() for name in body) <= high
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_the_cached_prefix_equals_its_control(task):
    """Same random numbers, same batches: the same weights."""
    plain, ours = (steps(task, method)[2] for method in ("prefix, plain PyTorch", "prefix+cache"))
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_lora_trains_its_adapters_and_the_head(task):
    ready = prepared(task, "LoRA r8")
    trained = [name for name, p in ready.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == 3 * 6


@pytest.mark.more
@pytest.mark.parametrize("method", ["dense", *OURS[:1]])
def test_a_run_keeps_to_its_budget_and_says_what_it_cost(method):
    record = run(Run("tiny", method, 1.0, 1e-3, 0, "fp32"))
    assert record["steps"] > 0
    assert 0 <= record["accuracy"] <= 1
    assert record["saved_numbers"] <= record["parameters"]
    json.dumps(record)


def test_a_grid_goes_on_where_it_stopped(tmp_path):
    calls = []

    def execute(what):
        calls.append(what)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return vars(what) | {"accuracy": 0.5 + what.seed / 1e5, "steps": 3 + (what.dtype == "bf16")}

    plan = Plan(("tiny",), (1.0,), ("dense", "LISA"), seeds=3)
    with pytest.raises(KeyboardInterrupt):
        measure(plan, Runs(tmp_path / "runs.jsonl", None, execute))
    records = measure(plan, Runs(tmp_path / "runs.jsonl", None, execute))
    assert [(r["method"], r["seed"], r["dtype"]) for r in records] == [
        (method, seed, "bf16") for seed in range(3) for method in ("dense", "LISA")
    ]
    assert len(calls) == 1 + len(set(calls)) == 1 + 2 * (2 + 1 + 3)  # the interrupted one twice


def test_a_difference_has_students_interval():
    """By hand: differences 1, 2, 3 with mean 2 and deviation 1; t of two degrees of freedom is 4.3027."""
    mean, low, high = difference([2, 4, 6], [1, 2, 3])
    assert (mean, round(low, 4), round(high, 4)) == (2, round(2 - 4.30265 / 3**0.5, 4), round(2 + 4.30265 / 3**0.5, 4))


def test_batch_norms_are_folded_into_convolutions():
    """One convolution against its batch norm in evaluation, and TensorFlow's padding by hand."""
    torch.manual_seed(0)
    model, state = EfficientNetLite0(2), {}
    conv, norm = torch.nn.Conv2d(3, 32, 3, stride=2, bias=False), torch.nn.BatchNorm2d(32, eps=1e-3).eval()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias), torch.nn.init.normal_(norm.running_mean)
    for name, module in model.named_modules():
        if isinstance(module, SameConv):
            own = _published(name)
            state[f"{own[0]}.weight"] = module.conv.weight.detach().clone()
            for part, value in zip(("weight", "bias", "running_mean", "running_var"), (1, 0, 0, 1), strict=True):
                state[f"{own[1]}.{part}"] = torch.full((module.conv.out_channels,), float(value))
    state["_conv_stem.weight"] = conv.weight.detach()
    state |= {f"_bn0.{name}": value for name, value in norm.state_dict().items()}
    load(model, state)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.stem(x), norm(conv(F.pad(x, (0, 1, 0, 1)))), rtol=1e-4, atol=1e-5)


def _published(name):
    parts = name.split(".")
    if parts[0] != "blocks":
        return {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}[name]
    conv = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
    return tuple(f"_blocks.{parts[1]}.{part}" for part in conv[parts[2]])

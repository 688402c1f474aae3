"""Fine-tuning on a budget: on a tiny random model, what each method trains, and that ours equals its control."""

import copy
import json
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from bench import render_curve, render_finetune
from bench.finetune import __main__ as command
from bench.finetune import curve, demo, grid, training
from bench.finetune.clock import ReplayedClock, WallClock, pooled
from bench.finetune.efficientnet_lite import EfficientNetLite0, SameConv, load
from bench.finetune.grid import Clocks, Lines, Plan, Runs, difference, measure
from bench.finetune.methods import METHODS
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


@pytest.mark.parametrize("method", ["dense", "prefix+cache, thawed"])
def test_a_run_by_the_clock_of_another_one_is_that_run(method, monkeypatch):
    """The same steps, and the same accuracy to the last bit, however long they take this time."""
    monkeypatch.setattr(training, "WallClock", lambda: Slow(0.05))
    first = training.timed(Run("tiny", method, 1.0, 1e-3, 0, "fp32"))
    clock = ReplayedClock(first["first"], first["phases"])
    again = [training.run(Run("tiny", method, 1.0, 1e-3, 0, "fp32"), clock=copy.deepcopy(clock)) for _ in range(2)]
    assert again[0] == again[1]
    assert (again[0]["steps"], again[0]["seconds"]) == (first["steps"], pytest.approx(first["seconds"]))
    assert first["saved_numbers"] <= first["parameters"]
    assert len(first["phases"]) == 1 + ("thawed" in method)
    json.dumps(first)


class Slow(WallClock):
    """A clock on which the time between two looks is always the same."""

    def __init__(self, step):
        super().__init__()
        self.step, self.now = step, 0.0

    def elapsed(self):
        self.now += self.step
        return self.now


def test_a_replayed_clock_goes_on_as_it_did_before():
    """By hand: first step after 2 s; steps of 1 s, 2 s, 4 s, and then 3 s each; the next phase 5 s each."""
    clock = ReplayedClock(2.0, [[1.0, 2.0, 4.0], [5.0]])
    assert [clock() for _ in range(6)] == [2, 3, 5, 9, 12, 15]
    clock.next_phase()
    assert [clock() for _ in range(2)] == [20, 25]


def test_clocks_of_several_rounds_are_averaged_as_far_as_all_of_them_went():
    clock = pooled([(1.0, [[1.0, 1.0, 9.0]]), (3.0, [[3.0, 5.0]])])
    assert [clock() for _ in range(3)] == [2, 4, 7]


def test_a_clock_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"phases: expected steps in each, got \[1, 0\]"):
        ReplayedClock(0.0, [[1.0], []])


def timed(what):
    return vars(what) | {"steps": 3, "seconds": 1.0, "first": 0.1, "phases": [[0.4 if what.dtype == "bf16" else 0.5] * 3]}


def test_a_grid_goes_on_where_it_stopped(tmp_path):
    made = []

    def execute(runs):
        for what in runs:
            if len(made) == 5:
                made.append(None)
                raise KeyboardInterrupt
            made.append(what)
            yield vars(what) | {"accuracy": 0.5 + what.seed / 1e5, "steps": 3}

    def measured():
        clocks = Clocks(Lines(tmp_path / "clocks.jsonl"), None, timed)
        clocks.time(plan.tasks, plan.methods)
        return measure(plan, Runs(Lines(tmp_path / "runs.jsonl"), clocks, execute=execute))

    plan = Plan(("tiny",), (1.0,), ("dense", "LISA"), seeds=3)
    with pytest.raises(KeyboardInterrupt):
        measured()
    records = measured()
    assert [(r["method"], r["seed"], r["dtype"], r["split"]) for r in records] == [
        (method, seed, "bf16", "test") for seed in range(3) for method in ("dense", "LISA")
    ]
    assert len(made) == 1 + len({*made} - {None}) == 1 + 2 * (1 + 3)
    assert len(Lines(tmp_path / "clocks.jsonl").records) == 2 * 2 * 2


def test_rates_are_chosen_by_the_tuning_seeds_on_other_samples(tmp_path, monkeypatch):
    monkeypatch.setitem(grid.RATES, "tiny", (1e-3, 1e-2, 1e-1))

    def execute(runs):
        return [vars(w) | {"accuracy": 0.9 if w.lr == 1e-2 and w.split == "validation" else 0.1, "steps": 3} for w in runs]

    clocks = Clocks(Lines(tmp_path / "clocks.jsonl"), None, timed)
    clocks.time(("tiny",), ("dense",), rounds=1)
    runs = Runs(Lines(tmp_path / "runs.jsonl"), clocks, execute=execute)
    records = measure(Plan(("tiny",), (2.0, 1.0), ("dense",), seeds=2, tuning_seeds=2), runs)
    assert {(r["lr"], r["seed"], r["split"]) for r in records} == {(1e-2, 0, "test"), (1e-2, 1, "test")}
    tried = {(r["budget"], r["lr"], r["seed"]) for r in runs.lines.records if r["split"] == "validation"}
    assert tried == {
        (b, lr, seed) for b, lr in [(1, 1e-3), (1, 1e-2), (1, 1e-1), (2, 1e-3), (2, 1e-2)] for seed in (1000, 1001)
    }


def test_some_methods_have_the_longer_budgets_too(tmp_path):
    clocks = Clocks(Lines(tmp_path / "clocks.jsonl"), None, timed)
    clocks.time(("tiny",), ("dense", "LISA"), rounds=1)
    runs = Runs(
        Lines(tmp_path / "runs.jsonl"), clocks, execute=lambda runs: [vars(w) | {"accuracy": 0.5, "steps": 3} for w in runs]
    )
    records = measure(Plan(("tiny",), (2.0, 1.0), ("dense", "LISA"), longer=("dense",), seeds=1), runs)
    assert [(r["budget"], r["method"]) for r in records] == [(1, "dense"), (1, "LISA"), (2, "dense")]


def test_bf16_is_tried_for_no_method_where_it_is_far_slower(tmp_path):
    clocks = Clocks(
        Lines(tmp_path / "clocks.jsonl"), None, lambda w: timed(w) | {"phases": [[9.0 if w.dtype == "bf16" else 1]]}
    )
    clocks.time(("tiny",), ("dense", "LISA"), rounds=1)
    assert [(r["method"], r["dtype"]) for r in clocks.lines.records] == [("dense", "fp32"), ("dense", "bf16"), ("LISA", "fp32")]
    assert clocks.faster("tiny", "LISA") == "fp32"


def test_the_whole_of_it_on_a_tiny_model(tmp_path, monkeypatch):
    """The command, two methods, in a process as it is: results from which a page is made."""
    given = ["--tasks=tiny", "--methods", "dense", "prefix+cache", "--budgets=0.5", "--seeds=2", "--timed=1", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", ["finetune", *given, f"--folder={tmp_path}", f"--out={tmp_path / 'out.json'}"])
    monkeypatch.setattr(Runs, "_in_workers", lambda self, runs: (run(w, None, self.clocks.clock(w)) for w in runs))
    monkeypatch.setattr(Clocks, "_in_a_process", lambda self, what: training.timed(what))
    command.main()
    text = render_finetune.render(json.loads((tmp_path / "out.json").read_text()))
    assert "**a tiny BERT on digits, 0.5 s.** Chosen by the tuning seeds: `prefix+cache`, " in text
    assert text.count("\n| ") == 2 + 2  # the header's two lines, and the methods


def test_the_demo_says_what_came_of_it():
    curves = {"dense": [(1.0, 0.2), (2.0, 0.5)], "prefix+cache": [(1.0, 0.5), (2.0, 0.7)]}
    said = demo.verdict(curves, 2)
    assert said.startswith("After 2 s on the same data: dense 50.0 %, prefix+cache 70.0 %. The frozen front reached what ")
    assert "ended with after 1 s (one seed" in said
    curves["dense"] = [(2.0, 0.9)]
    assert "stayed 20.0 points below the best of the others" in demo.verdict(curves, 2)


def test_looking_takes_none_of_the_time():
    wall = WallClock()
    clock = curve.Looking(wall, [1.5], lambda: time.sleep(0.5) or 0.5)
    assert clock() < 0.4
    wall.begin -= 2
    assert 2 <= clock() < 2.4
    assert clock() < 2.4  # without the half second
    assert [round(at) for at, _ in clock.seen] == [2]


def test_curves_of_a_tiny_model(tmp_path, monkeypatch):
    """The command: a look by the way and one at the end, a picture; a second call runs nothing again."""
    given = ["--task=tiny", "--seconds=1", "--rates", "dense=1e-3", "--looks=2", "--samples=50", "--timed=1"]
    monkeypatch.setattr(sys, "argv", ["curve", *given, f"--folder={tmp_path}", f"--out={tmp_path / 'out.json'}"])
    monkeypatch.setattr(Clocks, "_in_a_process", lambda self, what: training.timed(what))
    curve.main()
    record = json.loads((tmp_path / "out.json").read_text())["curves"][0]
    assert [round(at, 1) for at, _ in record["curve"]] == [pytest.approx(0.5, abs=0.2), pytest.approx(1.0, abs=0.2)]
    assert (tmp_path / "out.png").read_bytes()[1:4] == b"PNG"
    monkeypatch.setattr(curve, "curve", None)
    curve.main()


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


def test_a_curve_says_when_the_last_accuracy_of_dense_was_reached():
    curves = {"dense": [(10.0, 0.2), (20.0, 0.5), (30.0, 0.502)], "LISA": [(8.0, 0.4), (16.0, 0.6)], "S2FT": [(9.0, 0.4)]}
    content = {
        "environment": {"processor": "P", "torch": "2"},
        "curves": [{"what": {"method": method}, "curve": curve} for method, curve in curves.items()],
    }
    text = render_curve.render(content)
    assert "(49.7 %) is reached by dense after 20 s, by `LISA` after 16 s: **1.2x** sooner." in text  # 20 / 16 = 1.25
    assert "`S2FT` does not reach dense's last accuracy less 0.5 points (49.7 %)." in text
    assert "| 10 | 20.0 % | 40.0 % | 40.0 % |" in text


def test_the_cache_is_compared_with_the_control_in_turn():
    """By hand: 90 / 100, 50 / 100 and 99 / 110 have the median .9."""

    def rounds(*steps):
        return [{"steps": n, "budget": 30.0, "dtype": "bf16" if n == 1 else "fp32"} for n in steps]

    clocks = {"prefix+cache": rounds(1, 90, 50, 99), "prefix, plain PyTorch": rounds(100, 1, 100, 110)}
    runs = {method: [{"dtype": "fp32"}] for method in clocks}
    said = render_finetune.against_control(render_finetune.Case("text", 120.0, runs, {}, clocks))
    assert "in 30 s `prefix+cache` makes 0.90 of the steps" in said
    assert "(median of 3 rounds in turn)" in said

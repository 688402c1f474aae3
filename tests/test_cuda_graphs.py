"""One graph for each kind of step: which is replayed, and what it reads. Without a GPU, a replay is the step run again."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk


class Again(wk.GraphedStep):
    """On the CPU: what a graph would do, by running the step on the tensors that it was captured with."""

    def _capture(self, inputs):
        captured = {name: layer.plan for name, layer in self.layers.items()}

        def replay():
            now = {name: layer.plan for name, layer in self.layers.items()}
            self._set(captured)
            result = self._step(*inputs)
            self._set(now)
            return result

        return replay

    def _set(self, plans):
        for name, plan in plans.items():
            self.layers[name].plan = plan


FLAGS = [
    {},
    {"skip": True},
    {"rows": wk.TopK(k=3)},
    {"rows": wk.Rows([0, 2, 3])},
    {"rows": wk.Rows([1, 2, 4])},
    {"rows": wk.Rows([1, 4])},
    {"tokens": wk.Tokens(k=3)},
    {"tokens": wk.Tokens(k=2)},
    {"tokens": wk.Tokens(k=2), "rows": wk.Rows([1, 2])},
]


KINDS = len(FLAGS) - 1  # the two Rows of three share a graph


def set_flags(model, flag):
    wk.set_skip(model, flag.get("skip", False))
    wk.set_rows(model, flag.get("rows"))
    wk.set_tokens(model, flag.get("tokens"))


def trained(device, graphed, steps=30):
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))).to(device)
    options = dict(lr=0.05, capturable=True) if device == "cuda" else dict(lr=0.05)
    optimizer = torch.optim.Adam(model.parameters(), **options)

    def step(x, y):
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = graphed(model, step) if graphed else step
    teacher, losses = torch.randn(12, 5) / 4, []
    for i in range(steps):
        x = torch.randn(6, 12)
        set_flags(model, FLAGS[i % len(FLAGS)])
        losses.append(float(run(x.to(device), (x @ teacher).to(device))))
    return losses, run


@pytest.mark.parametrize(("device", "graphed"), [("cpu", Again), pytest.param("cuda", wk.GraphedStep, marks=pytest.mark.gpu)])
def test_every_kind_of_step_is_captured_once_and_trains(device, graphed):
    losses, run = trained(device, graphed)
    assert len(run._captured) == KINDS
    assert sum(losses[-9:]) < sum(losses[:9]) / 2


def test_a_replay_reads_what_is_set_now():
    assert trained("cpu", Again)[0] == trained("cpu", None)[0]


def test_a_model_that_became_smaller_has_a_graph_of_its_own():
    """The old one reads memory that is the model's no more."""
    model = wk.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    run, x = Again(model, lambda x: model(x).sum().backward()), torch.randn(2, 4)
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, 0
    run(x)
    assert wk.simplify_(model, x).layers["0"].after == 4
    run(x)
    run(x)
    assert len(run._captured) == 2


@pytest.mark.parametrize("method", [wk.policies.ScoreMemory, wk.policies.TinyProp])
def test_what_a_policy_observes_is_observed_in_a_graph(method):
    """Each step's choice is by the scores of the one before, graphed or not."""

    def chosen(graphed):
        torch.manual_seed(0)
        model = wk.convert(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)))
        policy = method(model, **({"k": 3} if method is wk.policies.ScoreMemory else {"s_min": 0.1, "s_max": 0.4}))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step(x, y):
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(model(x), y).backward()
            optimizer.step()

        run, rows = Again(model, step) if graphed else step, []
        for _ in range(8):
            run(torch.randn(6, 12), torch.randn(6, 5))
            policy.after_step()
            rows.append(model[0].rows.numbers)
        return rows

    eager = chosen(False)
    assert len(set(eager)) > 3
    assert chosen(True) == eager


def test_users_rows_are_left_alone():
    model = wk.convert(nn.Sequential(nn.Linear(12, 8)))
    first, second = wk.Rows([0, 1]), wk.Rows([3, 4])
    step = Again(model, lambda x: model(x).sum().backward())
    for rows in (first, second):
        model[0].rows = rows
        step(torch.randn(2, 12))
        assert model[0].rows is rows
    assert (first.index.tolist(), second.index.tolist()) == ([0, 1], [3, 4])


def test_each_depth_of_a_frozen_prefix_is_captured_once():
    model = wk.convert(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 5)))
    policy = wk.policies.PipeTransformerFreezing(model, torch.randn(1, 12), alpha=0.4)  # of three layers 0 1 1 2
    step = Again(model, lambda x: model(x).sum().backward())
    captures = []
    for epoch in (0, 1, 2, 3, 0, 3):
        policy.load_state_dict(policy.state_dict() | {"epoch": epoch})
        model.train()
        step(torch.randn(2, 12))
        captures.append(len(step._captured))
    assert captures == [1, 2, 2, 3, 3, 3]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="converted"):
        wk.GraphedStep(nn.Linear(3, 3), lambda: None)
    model = wk.convert(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected a tensor on cpu, got one on meta"):
        wk.GraphedStep(model, model)(torch.empty(2, 3, device="meta"))

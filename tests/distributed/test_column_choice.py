"""The same columns in all processes: by exact scores, random, from a saved state, recomputed, compiled, held by a policy. By
lagged scores: test_trajectory."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.distributed.models import draw, raises, wrapped
from wuskern.policies import PaCA


def exact_columns(rank, micro):
    model, _ = wrapped(nn.Linear(6, 3, bias=False), prepare=dict(exact=True))
    model.module.columns = wk.TopColumns(k=2)
    for i in range(micro):
        with model.no_sync() if i < micro - 1 else torch.enable_grad():
            model(draw(10 * rank + i, 5, 6)).sum().backward()
    return model.module.weight.grad


@pytest.mark.parametrize("micro", [1, 3])
def test_exact_columns_are_those_of_the_joint_batch(ranks, micro):
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for i in range(micro):
        both = torch.cat([draw(10 * rank + i, 5, 6) for rank in range(2)])
        for column in both.square().sum(0).topk(2).indices:
            expected[:, column] += both[:, column].sum() / 2
    for found in ranks.run(exact_columns, micro):
        torch.testing.assert_close(found, expected)


def random_columns(rank, exact):
    torch.manual_seed(rank)
    model, _ = wrapped(nn.Linear(40, 3, bias=False), prepare=dict(exact=exact))
    model.module.columns, found = wk.TopColumns(k=4, score="random"), []
    for _ in range(3):
        model.zero_grad()
        model(draw(rank, 5, 40)).sum().backward()
        found.append(model.module.weight.grad.any(0).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_random_columns_are_the_same_in_all_ranks_and_new_in_each_step(ranks, exact):
    first, second = ranks.run(random_columns, exact)
    assert first == second
    assert len({tuple(columns) for columns in first}) == 3
    assert all(len(columns) == 4 for columns in first)


def resume_columns(rank):
    def run(model, steps):
        found = []
        for step in steps:
            model.zero_grad()
            model(draw(rank + 2 * step, 5, 12)).sum().backward()
            found.append(model.module.weight.grad.any(0).nonzero().flatten().tolist())
        return found

    results = []
    for score in ("input", "random"):
        model, prepared = wrapped(nn.Linear(12, 3, bias=False))
        model.module.columns = wk.TopColumns(k=3, score=score)
        run(model, range(3))
        state = copy.deepcopy(prepared.state_dict())
        expected = run(model, range(3, 6))
        again, anew = wrapped(nn.Linear(12, 3, bias=False))
        again.module.columns = wk.TopColumns(k=3, score=score)
        anew.load_state_dict(state)
        results.append((expected, run(again, range(3, 6))))
        words = raises(ValueError, anew.load_state_dict, state | {"column_scores": {"": torch.zeros(3)}})
        assert "column_scores of '', torch.float32 [12], got torch.float32 [3]" in words
    return results


def test_the_state_of_the_choice_continues(ranks):
    first, second = ranks.run(resume_columns)
    assert first == second
    for expected, found in first:
        assert found == expected
        assert len(set(map(tuple, expected))) > 1


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x, recompute):
        return checkpoint(self.inner, x, use_reentrant=False) if recompute else self.inner(x)


def checkpointed(rank, exact):
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, _ = wrapped(Checkpointed(), prepare=dict(exact=exact))
        wk.set_columns(model.module, wk.TopColumns(k=2))
        for step in range(3):
            model.zero_grad()
            model(draw(rank + 2 * step, 5, 6) * (1 + torch.arange(6).roll(step + 3 * rank)), recompute).pow(2).sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        assert model.module.inner[0]._in_use.columns == wk.TopColumns(k=2), "the layer's own plan, after backward"
    return grads[:3], grads[3:]


@pytest.mark.parametrize("exact", [False, True])
def test_checkpointed_layers_keep_the_columns_of_forward(ranks, exact):
    for plain, recomputed in ranks.run(checkpointed, exact):
        for expected, found in zip(plain, recomputed, strict=True):
            for a, b in zip(expected, found, strict=True):
                assert torch.equal(a, b)


def compiled_steps(rank, exact):
    """Gradients of three steps, in eager mode and compiled."""
    found = []
    for call in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, _ = wrapped(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)), prepare=dict(exact=exact))
        wk.set_columns(model.module, wk.TopColumns(k=2))
        compiled, grads = call(model), []
        for step in range(3):
            model.zero_grad()
            compiled(draw(rank + 2 * step, 5, 8)).square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        found.append(grads)
    return found


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's compiler
@pytest.mark.parametrize("exact", [False, True])
def test_compiled_layers_train_the_same_columns(ranks, exact):
    for eager, compiled in ranks.run(compiled_steps, exact):
        for expected, found in zip(eager, compiled, strict=True):
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def held_by_a_policy(rank):
    """The columns of each step under PaCA, in one of two processes."""
    torch.manual_seed(0)
    model, _ = wrapped(nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2)))
    policy, found = PaCA(model.module, k=3, score="input", steps=2), []
    for step in range(6):
        model.zero_grad()
        model(draw(rank + 2 * step, 5, 12)).square().sum().backward()
        found.append(model.module[0].weight.grad.any(0).nonzero().flatten().tolist())
        policy.after_step()
    return found


def test_a_policy_chooses_by_the_inputs_of_all_processes(ranks):
    torch.manual_seed(0)
    sums, expected = torch.zeros(12, dtype=torch.float64), []
    chosen = nn.Linear(12, 6).double().weight.detach().square().sum(0)
    for step in range(6):
        expected.append(chosen.topk(3).indices.sort().values.tolist())
        sums += sum(draw(rank + 2 * step, 5, 12).square().sum(0) for rank in range(2))
        if step % 2:
            chosen, sums = sums, torch.zeros(12, dtype=torch.float64)
    assert ranks.run(held_by_a_policy) == [expected] * 2

"""The same rows in all processes: by exact scores, random, and from a saved state. By lagged scores: test_trajectory."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.distributed.models import draw, wrapped


def exact_rows(rank, compact, micro):
    model, _ = wrapped(nn.Linear(3, 6, bias=False), prepare=dict(exact=True))
    layer, x, coefficients = model.module, draw(rank, 5, 3), draw(10 + rank, 3, 6)
    layer.rows = wk.TopK(k=2, sparse=compact)
    for i in range(micro):
        with model.no_sync() if i < micro - 1 else torch.enable_grad():
            (model(x) * coefficients[i]).sum().backward()
    assert layer.rows == wk.TopK(k=2, sparse=compact)
    assert layer.weight.grad.is_sparse == compact
    return layer.weight.grad.to_dense()


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("compact", [False, True])
def test_exact_rows_are_those_of_the_joint_batch(ranks, compact, micro):
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for i in range(micro):
        both = [draw(10 + rank, 3, 6)[i] for rank in range(2)]
        for row in (5 * sum(c.abs() for c in both)).topk(2).indices:
            expected[row] += sum(c[row] * draw(rank, 5, 3).sum(0) for rank, c in enumerate(both)) / 2
    for found in ranks.run(exact_rows, compact, micro):
        torch.testing.assert_close(found, expected)


def random_rows(rank, exact):
    torch.manual_seed(rank)
    model, _ = wrapped(nn.Linear(3, 40, bias=False), prepare=dict(exact=exact))
    model.module.rows, found = wk.TopK(k=4, score="random"), []
    for _ in range(3):
        model.zero_grad()
        model(draw(rank, 5, 3)).sum().backward()
        found.append(model.module.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_random_rows_are_the_same_in_all_ranks_and_new_in_each_step(ranks, exact):
    first, second = ranks.run(random_rows, exact)
    assert first == second
    assert len({tuple(rows) for rows in first}) == 3
    assert all(len(rows) == 4 for rows in first)


def resume_rows(rank):
    def run(model, prepared, steps):
        found = []
        for step in steps:
            model.zero_grad()
            (model(draw(rank, 5, 3)) * draw(20 + step, 12)).sum().backward()
            found.append(model.module.weight.grad.abs().sum(1).nonzero().flatten().tolist())
        return found

    results = []
    for score in ("l1", "random"):
        model, prepared = wrapped(nn.Linear(3, 12, bias=False))
        model.module.rows = wk.TopK(k=3, score=score)
        run(model, prepared, range(3))
        state = prepared.state_dict()
        expected = run(model, prepared, range(3, 6))
        again, anew = wrapped(nn.Linear(3, 12, bias=False))
        again.module.rows = wk.TopK(k=3, score=score)
        anew.load_state_dict(state)
        results.append((expected, run(again, anew, range(3, 6))))
    return results


def test_the_state_of_the_choice_continues(ranks):
    for result in ranks.run(resume_rows):
        for expected, found in result:
            assert found == expected


def scores_after_nothing(rank):
    model, prepared = wrapped(nn.Linear(3, 12, bias=False))
    model.module.rows, found = wk.TopK(k=3), []
    for size in (1, 0):
        model.zero_grad()
        (model(draw(rank, 5, 3)) * draw(20, 12) * size).sum().backward()
        found.append({name: scores.clone() for name, scores in prepared.state_dict()["scores"].items()})
    return found


def test_a_step_without_gradients_leaves_the_scores_of_the_one_before(ranks):
    for before, after in ranks.run(scores_after_nothing):
        assert before[""].any()
        assert torch.equal(after[""], before[""])


def refused_rows(rank):
    model, prepared = wrapped(nn.Linear(3, 12, bias=False))
    model.module.rows = wk.TopK(k=3)
    model(draw(rank, 5, 3)).sum().backward()
    state, words = prepared.state_dict(), []
    for change in (
        {"scores": {"": torch.zeros(11)}},
        {"scores": {"": -torch.ones(12)}},
        {"scores": {"other": torch.zeros(12)}},
        {"generator": torch.zeros(3, dtype=torch.uint8)},
        {"more": 1},
    ):
        with pytest.raises(ValueError, match="state: expected ") as caught:
            prepared.load_state_dict({"scores": {}} | state | change)
        words.append(str(caught.value))
        after = prepared.state_dict()
        assert torch.equal(after["scores"][""], state["scores"][""])
        assert torch.equal(after["generator"], state["generator"])
    return words


def test_the_state_of_other_layers_is_refused_whole(ranks):
    for words in ranks.run(refused_rows):
        assert "scores of '', torch.float32 [12], got torch.float32 [11]" in words[0]
        assert len(set(words)) == 5

"""Conv1D of transformers under DDP: what is sent is the mean of both processes, never of other units."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.distributed.models import draw, wrapped
from tests.layers import stand_in
from tests.layers.stand_in import Conv1D, linear_of

PLANS = {
    "dense": {"skip": False},
    "skip": {"skip": True},
    "rows": {"rows": wk.Rows([1, 5])},
    "rows of both": {"rows": wk.Rows([1, 5], scope="both")},
    "top rows": {"rows": wk.TopK(k=2)},
    "columns": {"columns": wk.Columns([0, 3])},
    "block": {"columns": wk.Columns([0, 3]), "rows": wk.Rows([1, 5])},
    "top block": {"columns": wk.Columns([0, 3]), "rows": wk.TopK(k=2)},
}


def trained(rank, build, parts, exact, ours):
    """The weights ``[out, in]`` after some steps; ``ours``: by an optimizer of wuskern.optim."""
    stand_in.install()
    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(6, 6)).double()
    if build == "linear":
        net = nn.Sequential(linear_of(net[0]), nn.Tanh(), linear_of(net[2]))
    model, _ = wrapped(net, {"exact": exact})
    package = wk.optim if ours else torch.optim
    update = package.SGD(model.parameters(), 0.1, momentum=0.9)
    wk.set_plan(model.module, **parts)
    for step in range(4):
        model(draw(2 * step + rank, 5, 4)).square().mean().backward()
        update.step()
        update.zero_grad()
    return [layer.weight.detach().t() if build == "conv1d" else layer.weight.detach() for layer in (net[0], net[2])]


@pytest.mark.parametrize("exact", [False, True], ids=["lagged", "exact"])
@pytest.mark.parametrize("plan", PLANS)
def test_two_processes_train_as_with_linears(plan, exact, ranks):
    found, expected = (ranks.run(trained, build, PLANS[plan], exact, False) for build in ("conv1d", "linear"))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("plan", ["rows", "columns", "block"])
def test_with_an_optimizer_of_ours(plan, ranks):
    """Columns alone have the sparse form, and move lazily, which fixed ones cannot tell from all."""
    found, expected = (ranks.run(trained, "conv1d", PLANS[plan], False, ours) for ours in (True, False))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)


def form(rank, prepare):
    stand_in.install()
    net = Conv1D(6, 4).double()
    twin = copy.deepcopy(net)
    wk.convert(net).columns = wk.Columns([0, 3], sparse=True)
    if not prepare:
        with pytest.raises(RuntimeError, match="DistributedDataParallel would not send it"):
            nn.parallel.DistributedDataParallel(net)(draw(rank, 5, 4))
        return None
    model, _ = wrapped(net)
    model(draw(rank, 5, 4)).sum().backward()
    grad = net.weight.grad
    assert grad._indices().tolist() == [[0, 3]]
    for each in (0, 1):
        (twin(draw(each, 5, 4)).sum() / 2).backward()
    torch.testing.assert_close(grad._values(), twin.weight.grad[[0, 3]])
    return grad._values()


@pytest.mark.parametrize("prepare", [False, True])
def test_fixed_columns_have_the_sparse_form_after_a_prepared_backward(prepare, ranks):
    ranks.run(form, prepare)

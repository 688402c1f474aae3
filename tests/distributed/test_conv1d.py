"""A Conv1D, whose weight lies transposed, under a prepared DDP: what the Linear with the transposed weight sends and gives."""

import sys
from unittest import mock

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.models import draw
from tests.distributed.test_prepare import Sent
from tests.layers import stand_in
from wuskern.layers import conv1d

PLANS = {
    "columns": dict(columns=wk.Columns([0, 3])),
    "rows": dict(rows=wk.Rows([1, 4])),
    "block": dict(rows=wk.Rows([1, 4]), columns=wk.Columns([0, 3, 5])),
    "TopK": dict(rows=wk.TopK(k=2)),
    "TopColumns": dict(columns=wk.TopColumns(k=2)),
    "both by scores": dict(rows=wk.TopK(k=2), columns=wk.TopColumns(k=3, score="weight")),
}


def trained(rank, parts, exact):
    """Gradients, ``[out, in]``, and elements that were sent, in two steps: of the Conv1D and of the Linear."""
    with mock.patch.dict(sys.modules, {conv1d.HOME: stand_in.module()}):
        layer = stand_in.converted(5, 6)
    found = []
    for module in (layer, wk.convert(stand_in.linear_of(layer))):
        module.plan, grads = wk.Plan(**parts), []
        model = DistributedDataParallel(module)
        wk.distributed.prepare(model, exact=exact)
        for step in range(2):
            module.zero_grad()
            with Sent() as elements:
                (model(draw(rank + 2 * step, 4, 6)) * draw(9, 5)).square().sum().backward()
            grad = module.weight.grad.to_dense()
            grads.append((grad.t() if module is layer else grad, sum(elements)))
        found.append(grads)
    return found


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("parts", PLANS.values(), ids=PLANS)
def test_as_the_linear(ranks, parts, exact):
    for ours, linear in ranks.run(trained, parts, exact):
        for (grad, elements), (expected, as_many) in zip(ours, linear, strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
            assert elements == as_many


def compact(rank):
    with mock.patch.dict(sys.modules, {conv1d.HOME: stand_in.module()}):
        layer = stand_in.converted(5, 6)
    model = DistributedDataParallel(layer)
    wk.distributed.prepare(model)
    found = []
    for columns in (wk.Columns([0, 3], sparse=True), wk.TopColumns(k=2, sparse=True)):
        layer.zero_grad()
        layer.columns = columns
        model(draw(rank, 4, 6)).sum().backward()
        found.append(layer.weight.grad)
    return [(grad.is_sparse, grad._indices().numel(), grad.to_dense()) for grad in found]


def test_columns_are_compact_where_that_is_asked_for(ranks):
    mean = (draw(0, 4, 6).sum(0) + draw(1, 4, 6).sum(0)) / 2
    for (is_sparse, k, grad), by_scores in ranks.run(compact):
        assert is_sparse
        assert k == 2
        torch.testing.assert_close(grad[[0, 3]], mean[[0, 3], None].expand(2, 5))
        assert by_scores[:2] == (True, 2)

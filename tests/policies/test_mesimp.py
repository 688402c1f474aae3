"""meSimp: training, counts and masks against the arithmetic of the public code, written out here on plain PyTorch."""

import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.policies.mesimp_models import STEPS, X, Y, adam, cnn, mlp, train
from wuskern.policies import Compose, MeProp, MeSimp, SingleShotFreezing


class PublicCode:
    """What lancopku/meProp does with two hidden layers: masks on their outputs, ``hit`` and ``refer``, in whole numbers."""

    def __init__(self, k, prune, cycle, parts, resets):
        self.net, self.k, self.prune, self.cycle, self.parts, self.resets = mlp(), k, prune, cycle, parts, resets
        self.hidden = [self.net[0], self.net[2]]
        self.mask = [[True] * layer.out_features for layer in self.hidden]
        self.hit = [[0] * layer.out_features for layer in self.hidden]
        self.refer = 0
        self.optimizer = adam(self.net)

    def epoch(self, number):
        even = number // self.cycle % 2 == 0
        last = (number + 1) % self.cycle == 0
        for step, index in enumerate(torch.arange(len(Y)).split(len(Y) // STEPS), 1):
            self._batch(X[index], Y[index])
            if step % (STEPS // self.parts) == 0:
                if last and self.resets == "each":
                    self.optimizer = adam(self.net)
                if even:
                    self._update()
        if last and self.resets == "cycle":
            self.optimizer = adam(self.net)

    def _batch(self, x, y):
        inputs, outputs = [], []
        for layer, mask in zip(self.hidden, self.mask, strict=True):
            inputs.append(x.detach())
            z = (F.linear(x.detach(), layer.weight, layer.bias) * torch.tensor(mask)).detach().requires_grad_()
            outputs.append(z)
            x = z.relu()
        head = self.net[4]
        loss = F.cross_entropy(head(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        dy = outputs[1].grad  # x of the second layer is cut off: the first one's comes by hand
        self.refer += len(y)
        for number in (1, 0):
            layer, mask = self.hidden[number], self.mask[number]
            dy = dy * torch.tensor(mask)
            kept = torch.zeros_like(dy)
            for i, row in enumerate(dy):
                order = sorted((j for j in range(len(row)) if mask[j]), key=lambda j: (-abs(row[j].item()), j))[: self.k]
                for j in order:
                    self.hit[number][j] += 1
                    kept[i, j] = row[j]
            layer.weight.grad, layer.bias.grad = kept.t() @ inputs[number], dy.sum(0)
            if number:
                dy = (kept @ layer.weight.detach()) * (outputs[0] > 0)
        self.optimizer.step()

    def _update(self):
        least = int(self.refer * self.prune)
        for mask, hit in zip(self.mask, self.hit, strict=True):
            for j in range(len(mask)):
                if hit[j] < least:
                    mask[j] = False
                hit[j] = 0
        self.refer = 0


@pytest.mark.parametrize("reset", ["each", "cycle", "never"])
@pytest.mark.parametrize("interval", [None, 2])
def test_it_trains_counts_and_prunes_as_the_public_code(interval, reset):
    code = PublicCode(3, 0.25, 2, STEPS // interval if interval else 1, reset)
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=3, prune=0.25, cycle=2, interval=interval, reset=reset)
    optimizer = adam(net)
    policy.attach(optimizer)
    number, left = itertools.count(), []

    def compare():
        code.epoch(next(number))
        assert [alive.tolist() for alive in policy.alive.values()] == code.mask
        left.append([sum(mask) for mask in code.mask])
        for mine, theirs, mask in zip((net[0], net[2]), code.hidden, code.mask, strict=True):
            torch.testing.assert_close(mine.weight[mask], theirs.weight[mask])
            torch.testing.assert_close(mine.bias[mask], theirs.bias[mask])
            assert not mine.weight[~torch.tensor(mask)].any()
            assert not mine.bias[~torch.tensor(mask)].any()
        torch.testing.assert_close(net[4].weight, code.net[4].weight)

    train(net, policy, optimizer, 7, after=compare)
    assert left[0] != [8, 7]  # pruned something in the first cycle,
    assert left[1] == left[2] == left[3]  # nothing in the second,
    assert left[1] != [8, 7]


def counted(carry: bool) -> int:
    """What has been counted after the cycle that does not prune and a step of the next."""
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=3, prune=0.01, cycle=1, carry=carry)
    train(net, policy, adam(net), 2)
    return int(policy.counts["0"][-1])


def test_counts_of_a_cycle_that_does_not_prune_are_carried_or_not():
    assert (counted(True), counted(False)) == (24, 0)


def test_the_threshold_is_cut_down_to_a_whole_number():
    """Of 10 examples and .25: rows with 2 or more stay; with 9 and .1, none goes."""
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=3, prune=0.25)
    record = policy.records["0"]
    record.hits, record.seen = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7]), torch.tensor(10)
    policy.step()
    assert policy.alive["0"].tolist() == [False, False, True, True, False, True, True, True]
    assert policy.alive["2"].all()  # no backward, no examples
    record.hits, record.seen, policy.prune = torch.zeros(8, dtype=torch.int64), torch.tensor(9), 0.1
    policy.step()
    assert int(policy.alive["0"].sum()) == 5


def test_the_most_active_row_is_left_where_all_would_go():
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=3, prune=1.0)
    record = policy.records["0"]
    record.hits, record.seen = torch.tensor([3, 1, 8, 2, 0, 9, 0, 0]), torch.tensor(10)
    record.alive[5] = False
    policy.step()
    assert policy.alive["0"].nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Sigmoid])
@pytest.mark.parametrize("per", ["example", "batch"])
def test_a_pruned_row_stays_zero_whatever_the_optimizer_does(per, activation):
    net = wk.convert(mlp(activation))
    policy = MeSimp(net, X, k=3, per=per, prune=0.5, cycle=2, interval=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    policy.attach(optimizer)
    before = {name: alive.clone() for name, alive in policy.alive.items()}
    sizes = []

    def look():
        for name, alive in policy.alive.items():
            assert not (alive & ~before[name]).any()
            assert not net.get_submodule(name).weight[~alive].any()
            assert not net.get_submodule(name).bias[~alive].any()
            before[name] = alive.clone()
        sizes.append(sum(int(alive.sum()) for alive in before.values()))

    train(net, policy, optimizer, 6, after=look)
    assert sizes[1] < 15
    assert sizes[1] == sizes[3]


def test_rows_that_are_pruned_are_not_chosen_again():
    """Sigmoid's gradient at zero is the largest there is."""
    net = wk.convert(mlp(nn.Sigmoid))
    policy = MeSimp(net, X, k=3, per="batch")
    policy.records["0"].alive = torch.tensor([True, True, True, True] + [False] * 4)
    train(net, policy, adam(net), 1)
    policy.records["0"].clear()
    F.cross_entropy(net(X), Y).backward()
    hits = policy.records["0"].hits
    assert hits[4:].sum() == 0
    assert hits.sum() == 3


def test_pruned_rows_are_written_where_a_captured_graph_reads_them():
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=2, prune=0.6)
    alive = net[0].plan.observer.alive
    train(net, policy, adam(net), 1)
    assert not alive.all()
    assert net[0].plan.observer.alive is policy.alive["0"] is alive


def test_a_pruned_channel_gives_nothing_behind_its_batch_norm():
    x = torch.randn(24, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    net = wk.convert(cnn())
    policy = MeSimp(net, x, ratio=0.5, per="batch", prune=0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, policy, optimizer, 3, x)
    for name in ("0", "3"):
        assert 0 < int(policy.alive[name].sum()) < len(policy.alive[name])
    for mode in (True, False):
        first = net.train(mode)[:2](x)
        assert not first[:, ~policy.alive["0"]].any()
        assert first[:, policy.alive["0"]].any()
        assert not net[:5](x)[:, ~policy.alive["3"]].any()


def test_a_layer_that_skips_or_is_frozen_keeps_its_rows():
    net = wk.convert(mlp())
    mesimp = MeSimp(net, X, k=1, prune=0.9)
    policy = Compose([SingleShotFreezing(net, X, at=0, share=0.4), mesimp])
    mesimp.counts["0"][-1] = 100  # of before it was frozen: no row was chosen
    version = net[0].weight._version
    train(net, policy, adam(net), 1)
    assert mesimp.alive["0"].all()
    assert int(mesimp.counts["0"][-1]) == 100
    assert net[0].weight._version == version  # a cache of activations watches it
    assert not mesimp.alive["2"].all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it
def test_a_compiled_model_counts_alike():
    counts = []
    for compiled in (False, True):
        net = wk.convert(mlp())
        policy = MeSimp(net, X, k=3)
        policy.records["0"].alive[2:5] = False
        call = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        for _ in range(2):
            F.cross_entropy(call(X), Y).backward()
        counts.append([(record.hits.tolist(), int(record.seen)) for record in policy.records.values()])
    assert counts[0] == counts[1]
    assert counts[0][0][0][2:5] == [0, 0, 0]
    assert counts[0][0][1] == 48


def test_released_it_leaves_a_stock_model():
    net = wk.convert(mlp())
    policy = MeSimp(net, X, k=3)
    policy.release()
    assert all(layer.rows is None for layer in policy.layers.values())
    policy.apply()
    assert net[0].rows == wk.PerExample(k=3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: MeSimp(net, X), ValueError, "ratio, k: expected one of the two"),
        (lambda net: MeSimp(net, X, k=8), ValueError, "0: expected fewer than its 8 rows to be chosen, got all"),
        (lambda net: MeSimp(net, X, k=3, per="token"), ValueError, "per: expected one of batch, example, got 'token'"),
        (lambda net: MeSimp(net, X, k=3, prune=0), ValueError, "prune: expected a number over 0"),
        (lambda net: MeSimp(net, X, k=3, cycle=0), ValueError, "cycle: expected at least 1, got 0"),
        (lambda net: MeSimp(net, X, k=3, interval=0), ValueError, "interval: expected at least 1, got 0"),
        (lambda net: MeSimp(net, X, k=3, reset="often"), ValueError, "reset: expected one of cycle, each, never"),
        (lambda net: MeSimp(net, X, k=3, dense=["9"]), ValueError, "dense: expected names of converted layers"),
        (
            lambda net: Compose([MeProp(net, k=2), MeSimp(net, X, k=3)]),
            ValueError,
            "decide of layer 0 which rows have gradients, got MeProp and MeSimp",
        ),
        (
            lambda net: Compose([SingleShotFreezing(net, X, at=1), MeSimp(net, X, k=3, simplify=True)]),
            ValueError,
            "layer 0 its shape, which a frozen one and one with fixed columns keep, got SingleShotFreezing and MeSimp",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make(wk.convert(mlp()))


def test_convolutions_have_the_choice_of_a_batch():
    with pytest.raises(TypeError, match="0: rows: expected TopK or Rows for a Conv2d, got PerExample"):
        MeSimp(wk.convert(cnn()), torch.randn(2, 2, 3, 3, dtype=torch.float64), k=2)

"""How often a prepared DDP's processes wait for one another, with how many bytes, and what then travels together."""

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

import wuskern as wk
from tests.distributed.models import draw, raises, wrapped

OUT, MOST = 8, 1.05


class Counted:
    """The bytes that each collective gets, in turn; whatever else is called would be none of ours."""

    NAMES = ("all_reduce", "all_gather", "broadcast", "all_gather_object")

    def __enter__(self):
        self.calls, self.originals = [], {name: getattr(dist, name) for name in self.NAMES}
        for name in self.NAMES:
            setattr(dist, name, self._counting(name))
        return self.calls

    def _counting(self, name):
        def counted(*args, **kwargs):
            tensor = args[1] if name == "all_gather" else args[0]
            self.calls.append((name, tensor.numel() * tensor.itemsize))
            return self.originals[name](*args, **kwargs)

        return counted

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(dist, name, original)


def calls_of(rank, bucket_cap_mb):
    """The collectives of a step that skips, of one that trains rows by their scores, and what each trains in bytes."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.LayerNorm(64))]
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(wk.convert(nn.Sequential(*layers)), bucket_cap_mb=bucket_cap_mb)
    wk.distributed.prepare(model)

    def step():
        model.zero_grad()
        with Counted() as calls:
            model(draw(rank, 4, 64).float()).square().mean().backward()
        return calls

    step()  # after which DDP has its buckets
    wk.set_skip(model.module, True)
    skip = step()
    wk.set_skip(model.module, False)
    wk.set_rows(model.module, wk.TopK(k=8))
    step()
    rows = step()
    others = 6 * (64 + 2 * 64) * 4
    return (skip, others), (rows, others + 6 * (8 * 64 + 64) * 4)


@pytest.mark.parametrize("bucket_cap_mb", [25, 0.05], ids=["one bucket", "many"])
def test_a_step_has_one_comparison_and_one_message(ranks, bucket_cap_mb):
    for found in ranks.run(calls_of, bucket_cap_mb):
        for calls, trained in found:
            assert [name for name, _ in calls] == ["all_gather", "all_reduce"]
            assert sum(count for _, count in calls) <= MOST * trained
            assert calls[0][1] == 8  # however many layers


# ---- a choice that stays -------------------------------------------------------------------------------------------------


def staying(rank, slopes, every, hook, save_after):
    """The rows with a gradient in each step; ``slopes[step][rank]`` is dY, the same for each of five examples."""
    model, prepared = wrapped(
        nn.Linear(3, OUT, bias=False),
        prepare=dict(every=every, comm_hook=(None, default_hooks.allreduce_hook) if hook else None),
    )
    with torch.no_grad():
        model.module.weight[:2] = 10  # the first choice
    model.module.rows = wk.TopK(k=2)
    rows = []
    for step, slope in enumerate(slopes):
        model.zero_grad()
        (model(draw(rank, 5, 3)) * torch.tensor(slope[rank], dtype=torch.float64)).sum().backward()
        rows.append(model.module.weight.grad.abs().sum(1).nonzero().flatten().tolist())
        if step == save_after:
            state = prepared.state_dict()
            assert state["scores"][""].tolist() == expected_scores(slopes[step // every * every : step + 1])
    return rows


def expected_scores(slopes):
    return [5.0 * sum(abs(of_rank[row]) for of_all in slopes for of_rank in of_all) for row in range(OUT)]


def expected_rows(slopes, every, save_after):
    rows, chosen, since = [], [0, 1], []
    for step, slope in enumerate(slopes):
        rows.append(chosen)
        since.append(slope)
        if len(since) == every or step == save_after:
            scores = torch.tensor(expected_scores(since))
            chosen, since = sorted(scores.topk(2).indices.tolist()), []
    return rows


@pytest.mark.parametrize("hook", [False, True], ids=["with the gradients", "in a message of their own"])
@pytest.mark.parametrize(("every", "save_after"), [(1, 3), (3, None), (3, 4)])
def test_a_choice_stays_for_some_steps(ranks, every, hook, save_after):
    made = torch.Generator().manual_seed(5)
    slopes = torch.randint(1, 10**6, (9, 2, OUT), generator=made).tolist()
    expected = expected_rows(slopes, every, save_after)
    assert ranks.run(staying, slopes, every, hook, save_after) == [expected] * 2
    assert len(set(map(tuple, expected))) > 2


def messages_of_a_choice(rank, every):
    model, _ = wrapped(nn.Linear(3, OUT, bias=False), prepare=dict(every=every))
    model.module.rows = wk.TopK(k=2)
    sent = []
    for _ in range(5):
        with Counted() as calls:
            model(draw(rank, 5, 3)).square().sum().backward()
        sent.append([count // 8 for name, count in calls if name == "all_reduce"])
    return sent


def test_scores_travel_once_for_each_choice(ranks):
    rows, scores = 2 * 3, OUT
    expected = [[scores, rows], [rows + scores], [rows], [rows + scores], [rows]]  # the first choice is by the weights
    for found in ranks.run(messages_of_a_choice, 2):
        assert found == expected


def test_how_long_a_choice_stays_is_a_whole_number(ranks):
    for found in ranks.run(refused):
        assert found == ["every: expected at least 1, got 0"]


def refused(rank):
    return [raises(ValueError, wrapped, nn.Linear(3, 4), dict(every=0))]


# ---- what does not go together, or wrong ---------------------------------------------------------------------------------


def of_two_dtypes(rank):
    """Buckets of float64 and of float32, in turn, of which little is sent."""

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4).double(), nn.Linear(4, 4), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.c(self.b(self.a(x).float()).double())

    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(wk.convert(Casting()), bucket_cap_mb=1e-4)
    wk.distributed.prepare(model)
    found = []
    for skip in (False, True, False):
        model.zero_grad()
        model.module.b.skip, model.module.a.rows = skip, wk.TopK(k=2) if skip else None
        model(draw(rank, 5, 3)).square().sum().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    torch.manual_seed(0)
    alone = Casting()
    (alone(torch.cat([draw(0, 5, 3), draw(1, 5, 3)])).square().sum() / 2).backward()
    return found, [p.grad for p in alone.parameters()]


def test_buckets_of_two_dtypes(ranks):
    for found, expected in ranks.run(of_two_dtypes):
        for step in (found[0], found[2]):
            for grad, right in zip(step, expected, strict=True):
                torch.testing.assert_close(grad, right)
        a, _, skipped, *rest = found[1]
        assert skipped is None
        kept = a.abs().sum(1) > 0
        assert kept.sum() == 2
        torch.testing.assert_close(a[kept], expected[0][kept])
        for grad, right in zip(rest, expected[3:], strict=True):
            torch.testing.assert_close(grad, right)


def failing(rank):
    """A hook whose message fails: each bucket that waited for it has to hear of that."""

    def lost(_, bucket):
        future = torch.futures.Future()
        future.set_exception(RuntimeError("the link is down"))
        return future

    model, _ = wrapped(
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), prepare=dict(comm_hook=(None, lost)), bucket_cap_mb=1e-4
    )
    model.module[0].skip = True
    return [raises(RuntimeError, model(draw(rank, 5, 3)).sum().backward)]


def test_a_message_that_fails_fails_backward(ranks):
    for found in ranks.run(failing):
        assert "the link is down" in found[0]

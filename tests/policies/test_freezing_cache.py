"""A cache of activations: the same training, less of it, and nothing stale."""

from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.policies.freezing_models import resnet, vgg
from wuskern.policies import ActivationCache, PeriodicFreezing, ProgressiveFreezing, SingleShotFreezing

SAMPLES = torch.randn(22, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
TARGETS = torch.randn(22, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
GROWING = dict(start=0, end=3, share=1.0)  # of four layers 0 1 2 3 are frozen


def network(make=vgg) -> nn.Module:
    torch.manual_seed(1)
    return wk.convert(make().double())


class Training:
    """Epochs of batches of five, by a cache, or by the model itself."""

    def __init__(self, cached: bool, method=ProgressiveFreezing, make=vgg, **arguments) -> None:
        self.net = network(make)
        self.policy = method(self.net, SAMPLES[:2], **arguments)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
        self.policy.attach(self.optimizer)
        self.cached = cached
        self.cache = ActivationCache(self.policy, SAMPLES, chunk=4)
        self.order = torch.Generator().manual_seed(2)
        self.reasons: list[str | None] = []

    def epoch(self) -> None:
        self.net.train()
        for index in torch.randperm(len(SAMPLES), generator=self.order).split(5)[:4]:
            y = self.cache(index) if self.cached else self.net(SAMPLES[index])
            self.optimizer.zero_grad(set_to_none=False)
            (y - TARGETS[index]).square().mean().backward()
            self.optimizer.step()
        self.reasons.append(self.cache.reason)
        self.policy.step()

    def state(self) -> list[Tensor]:
        return [value.clone() for value in self.net.state_dict().values()]


@pytest.mark.parametrize("make", [vgg, resnet])
def test_a_cached_run_is_the_uncached_one(make):
    runs = [Training(cached, make=make, **GROWING) for cached in (True, False)]
    for _ in range(5):
        for run in runs:
            run.epoch()
        for a, b in zip(*(run.state() for run in runs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert runs[0].reasons == ["nothing is frozen", None, None, None, None]


def test_a_prefix_that_thaws_is_computed_anew():
    runs = [Training(cached, PeriodicFreezing, start=1, share=0.5) for cached in (True, False)]
    for _ in range(5):
        for run in runs:
            run.epoch()
    for a, b in zip(*(run.state() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert runs[0].reasons == ["nothing is frozen", None] * 2 + ["nothing is frozen"]


def count_runs(conv: nn.Conv2d) -> list[int]:
    """Samples in each of its convolutions."""
    runs: list[int] = []
    compute = conv._conv_forward

    def counted(x: Tensor, *args: Any) -> Tensor:
        runs.append(len(x))
        return compute(x, *args)

    conv._conv_forward = counted
    return runs


FROZEN, REST = [4, 4, 4, 3], [4, 4]  # what the check of a new prefix runs, of its layers and of those behind it
CHUNKS = [4, 4, 4, 4, 4, 2]


def test_each_sample_runs_through_a_layer_once_after_it_froze():
    run = Training(True, **GROWING)
    run.epoch()
    first, second = count_runs(run.net[0]), count_runs(run.net[3])
    run.epoch()  # the first layer is frozen; 20 of 22 samples come, from all six chunks
    assert (sorted(first), sorted(second)) == (sorted(FROZEN + CHUNKS), [*REST, 5, 5, 5, 5])
    first.clear(), second.clear()
    run.epoch()  # so is the second: computed from what the first has kept
    assert (sorted(first), sorted(second)) == (sorted(FROZEN), sorted(FROZEN + CHUNKS))
    for expected in (FROZEN, []):  # one more layer freezes, and then no more
        first.clear(), second.clear()
        run.epoch()
        assert (first, second) == (expected, expected)


def test_what_is_kept_does_not_depend_on_the_batches():
    found = []
    for batches in ([[0, 7, 21], [3, 8, 16, 12]], [[21, 0, 3, 7, 8, 12, 16]], [[12], [8], [3, 16, 0, 7, 21]]):
        net = network()
        policy = SingleShotFreezing(net.train(), SAMPLES[:2], at=0, share=0.5)
        cache = ActivationCache(policy, SAMPLES, chunk=4)
        for batch in batches:
            cache(torch.tensor(batch))
        found.append(cache(torch.arange(0, 22, 3)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_run_that_resumes_without_its_cache_goes_on_bit_for_bit(cut):
    whole, first = Training(True, **GROWING), Training(True, **GROWING)
    for epoch in range(5):
        whole.epoch()
        if epoch < cut:
            first.epoch()
    second = Training(True, **GROWING)
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.policy.load_state_dict(first.policy.state_dict())
    second.order.set_state(first.order.get_state())
    for _ in range(cut, 5):
        second.epoch()
    assert all(map(torch.equal, whole.state(), second.state()))


def test_less_that_is_frozen_is_not_taken_from_what_was():
    """Also where no weight has moved in between."""
    net = network().train()
    policy = SingleShotFreezing(net, SAMPLES[:2], at=0, share=0.5)
    cache = ActivationCache(policy, SAMPLES)
    for depth, kept in ((2, True), (1, False), (0, False)):
        policy.prefix.set(depth)
        net.zero_grad()
        cache(torch.arange(5)).sum().backward()
        assert (net[3].weight.grad is None) == kept
    assert cache.nbytes == 0


def test_what_is_kept_is_computed_without_a_graph():
    net = network().train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0, share=0.5), SAMPLES)
    graphs: list[bool] = []
    net[0].register_forward_hook(lambda _m, _x, y: graphs.append(y.requires_grad))
    cache(torch.arange(5))
    assert set(graphs) == {False}


def test_weights_that_are_loaded_make_new_values():
    net = network().train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0, share=0.5), SAMPLES)
    index = torch.arange(5)
    before = cache(index)
    net.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in net.state_dict().items()})
    torch.testing.assert_close(cache(index), net(SAMPLES[index]))
    assert not torch.allclose(before, cache(index))


def test_values_have_the_dtype_that_autocast_gives():
    net = network().float().train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2].float(), at=0, share=0.5), SAMPLES.float())
    index = torch.arange(22)
    sizes = []
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert cache(index).dtype is (torch.bfloat16 if enabled else torch.float32)
        sizes.append(cache.nbytes)
    assert sizes == [22 * 4 * 2 * 2 * size for size in (4, 2, 4)]  # of the pooling behind the second convolution


def test_samples_and_their_layout_stay_as_they_were():
    torch.manual_seed(0)
    net = wk.convert(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2)))
    net = net.to(memory_format=torch.channels_last).train()
    samples = torch.randn(9, 2, 6, 6).contiguous(memory_format=torch.channels_last)
    before = samples.clone()
    policy = SingleShotFreezing(net, samples[:1].clone(), at=0, share=0.5)
    layouts = layouts_into(net[3])
    ActivationCache(policy, samples)(torch.tensor([8, 2, 5]))
    assert torch.equal(samples, before)
    assert set(layouts) == {True}


def layouts_into(module: nn.Module) -> list[bool]:
    found: list[bool] = []
    module.register_forward_hook(lambda _m, args, _y: found.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    return found


# ---- where nothing is kept ------------------------------------------------------------------------------------------


def test_evaluation_runs_the_whole_model():
    net = network()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0), SAMPLES)
    net.eval()
    assert torch.equal(cache(torch.arange(3)), net(SAMPLES[:3]))
    assert cache.nbytes == 0


def test_a_limit_is_kept():
    net = network().train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0), SAMPLES, limit=22 * 4 * 2 * 2 * 8 - 1)
    index = torch.arange(5)
    expected = net(SAMPLES[index])
    runs = count_runs(net[0])
    assert torch.equal(cache(index), expected)
    assert cache.reason == "limit: 2816 bytes of activations are more than 2815"
    runs.clear()
    assert torch.equal(cache(index), expected)
    assert (runs, cache.nbytes) == ([5], 0)


def test_what_lies_behind_a_weight_that_still_trains_is_not_kept():
    net = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False))
    net[3].weight = net[0].weight
    wk.convert(net).train()
    tokens = torch.randint(7, (8, 3))
    cache = ActivationCache(SingleShotFreezing(net, tokens[:1], at=0), tokens)
    assert torch.equal(cache(torch.arange(2)), net(tokens[:2]))
    assert cache.reason == "no module of the model is frozen altogether"


def test_a_part_of_a_child_that_is_frozen_has_no_backward_either():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))
    samples = torch.randn(8, 3)
    cache = ActivationCache(SingleShotFreezing(wk.convert(net).train(), samples[:1], at=0), samples)
    cache(torch.arange(4)).sum().backward()
    assert cache.reason is None
    assert [p.grad is None for p in net.parameters()] == [True] * 4 + [False] * 4
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(limit=-1), ValueError, "limit: expected at least 0, got -1"),
        (dict(chunk=0), ValueError, "chunk: expected at least 1, got 0"),
        (dict(freezing=wk.policies.WUS(network())), TypeError, "freezing: expected a freezing policy, got WUS"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ActivationCache(**dict(freezing=SingleShotFreezing(network(), SAMPLES[:1], at=0), samples=SAMPLES) | arguments)

"""Lightning trains as a loop of one's own does, bit for bit: the same steps, with the same calls of the policy around them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.integrations import lit
from tests.policies.test_resume import same
from wuskern.integrations.lightning import WuskernCallback
from wuskern.policies import Compose

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]
EPOCHS = 4  # of six batches


def wus(net: nn.Module, optimizer: Any) -> Any:
    return wk.policies.WUS(net, window=1, warmup=0, patience=2)


def wuslr(net: nn.Module, optimizer: Any) -> Any:
    return wk.policies.WUSLR(net, optimizer, window=1, warmup=0, patience=1)


def rows(net: nn.Module, optimizer: Any) -> Any:
    return wk.policies.ScoreMemory(net, ratio=0.3, scope="weight", reuse=2)


def masks(net: nn.Module, optimizer: Any) -> Any:
    return wk.policies.RigL(net, epochs=EPOCHS, sparsity=0.5, interval=3)


def frozen(net: nn.Module, optimizer: Any) -> Any:
    return wk.policies.ProgressiveFreezing(net, lit.X[:2], start=0, end=2, share=0.7)


def several(net: nn.Module, optimizer: Any) -> Any:
    mest = wk.policies.MEST(net, epochs=EPOCHS, sparsity=0.5, interval=1)
    return Compose([wus(net, optimizer), mest, rows(net, optimizer)])


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def compact(module: nn.Module) -> torch.optim.Optimizer:
    return wk.optim.AdamW(module.parameters(), lr=0.01)


Make = Callable[[nn.Module, Any], Any]
METHODS: dict[str, tuple[Make, Callable[[nn.Module], Any]]] = {
    "WUS": (wus, lit.sgd),
    "WUSLR": (wuslr, adamw),
    "rows": (rows, lit.sgd),
    "compact rows": (rows, compact),
    "masks": (masks, lit.sgd),
    "a frozen prefix": (frozen, lit.sgd),
    "several": (several, compact),
}


def by_hand(make: Make, optimizer_of: Any, micro: int = 1, clip: float | None = None) -> tuple[nn.Module, Any]:
    """A loop of one's own, whose steps have ``micro`` batches, or what an epoch has left."""
    net = lit.network()
    optimizer = optimizer_of(net)
    policy = make(net, optimizer)
    policy.attach(optimizer)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(lit.X), generator=torch.Generator().manual_seed(epoch)).split(lit.BATCH)
        for number, index in enumerate(order):
            torch.manual_seed(lit.seed_of(epoch, number))
            if number % micro == 0:
                policy.before_step()
                optimizer.zero_grad()
            (F.cross_entropy(net(lit.X[index]), lit.Y[index]) / micro).backward()
            if number % micro == micro - 1 or number == len(order) - 1:
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                policy.after_step()
        if policy.evaluates:
            policy.step(0.5)
        policy.after_epoch()
    return net, policy


def assert_same(module: Any, callback: WuskernCallback, net: nn.Module, policy: Any) -> None:
    expected, found = net.state_dict(), module.net.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert same(callback.policy.state_dict(), policy.state_dict())


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_is_that_of_ones_own_loop(name: str, sanity: int) -> None:
    make, optimizer = METHODS[name]
    module = lit.Lit(optimizer=optimizer)
    callback = WuskernCallback(lambda model, optimizer: make(model.net, optimizer), "accuracy")
    trainer = lit.fit(module, callback, max_epochs=EPOCHS, num_sanity_val_steps=sanity)
    assert trainer.global_step == 24
    assert_same(module, callback, *by_hand(make, optimizer))


@pytest.mark.parametrize("micro", [2, 4])
@pytest.mark.parametrize("name", ["masks", "compact rows", "several"])
def test_micro_batches_are_one_step_and_those_left_at_the_end_of_an_epoch_another(name: str, micro: int) -> None:
    make, optimizer = METHODS[name]
    module = lit.Lit(optimizer=optimizer)
    callback = WuskernCallback(lambda model, optimizer: make(model.net, optimizer), "accuracy")
    lit.fit(module, callback, max_epochs=EPOCHS, accumulate_grad_batches=micro)
    assert_same(module, callback, *by_hand(make, optimizer, micro=micro))


def test_clipping_is_that_of_ones_own_loop() -> None:
    make, optimizer = METHODS["several"]
    module = lit.Lit(optimizer=optimizer)
    callback = WuskernCallback(lambda model, optimizer: make(model.net, optimizer), "accuracy")
    lit.fit(module, callback, max_epochs=EPOCHS, gradient_clip_val=0.1)
    assert_same(module, callback, *by_hand(make, optimizer, clip=0.1))


# ---- compact gradients, clipped -------------------------------------------------------------------------------------

ROWS = [1, 4, 5]


def one_step(**clipping: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """By how much a step of size 1 changed each parameter, of three rows of the first layer and dense others, and the
    gradients of stock PyTorch, in double precision."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net[2].weight.data *= 4  # the first layer's gradient is a large part of all
    stock = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    stock.load_state_dict(net.state_dict())
    F.cross_entropy(stock(lit.X[:4].double()), lit.Y[:4]).backward()
    grads = {name: p.grad for name, p in stock.named_parameters()}
    grads["0.weight"][[row for row in range(16) if row not in ROWS]] = 0

    class Module(lit.Lit):
        sparse: Any = None

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.sparse = self.net[0].weight.grad.is_sparse

    wk.convert(net)[0].rows = wk.Rows(ROWS)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    module = Module(net, lambda net: wk.optim.SGD(net.parameters(), lr=1.0))
    data = lit.loader(lit.X[:4], lit.Y[:4], torch.utils.data.SequentialSampler(lit.X[:4]))
    lit.fit(module, WuskernCallback("dense"), data=data, validation=False, max_epochs=1, **clipping)
    assert module.sparse
    return {name: before[name] - p.detach() for name, p in net.named_parameters()}, grads


def test_compact_gradients_are_clipped_by_a_norm_that_counts_them() -> None:
    changes, grads = one_step(gradient_clip_val=0.05)
    norm = sum(grad.square().sum() for grad in grads.values()).sqrt()
    without = sum(grad.square().sum() for name, grad in grads.items() if name != "0.weight").sqrt()
    assert norm > 1.1 * without > 0.06
    for name, grad in grads.items():
        torch.testing.assert_close(changes[name].double(), grad * 0.05 / norm, rtol=1e-4, atol=2e-7)


def test_compact_gradients_are_not_clipped_by_value_and_torch_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Sparse"):
        one_step(gradient_clip_val=0.02, gradient_clip_algorithm="value")

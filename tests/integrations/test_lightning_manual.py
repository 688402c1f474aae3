"""Lightning: manual optimization with one optimizer and with two, and StochasticWeightAveraging."""

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.integrations import lit, test_lightning_steps
from wuskern.integrations.lightning import WuskernCallback

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]
EPOCHS, STEPS = 4, 6
ORDER = torch.utils.data.SequentialSampler(lit.X)


class Manual(lit.Lit):
    """Steps by itself, after every second batch."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        if batch_idx % 2 == 0:
            self.optimizers().zero_grad()
        self.manual_backward(loss / 2)
        if batch_idx % 2 == 1:
            self.optimizers().step()


@pytest.mark.parametrize("name", ["masks", "compact rows", "several"])
def test_a_module_that_steps_by_itself(name: str) -> None:
    make, optimizer = test_lightning_steps.METHODS[name]
    module = Manual(optimizer=optimizer)
    callback = WuskernCallback(lambda model, optimizer: make(model.net, optimizer), "accuracy")
    lit.fit(module, callback, max_epochs=EPOCHS)
    test_lightning_steps.assert_same(module, callback, *test_lightning_steps.by_hand(make, optimizer, micro=2))


# ---- two networks that train in turn --------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.generator = wk.convert(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)))
        self.critic = wk.convert(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
            torch.optim.SGD(self.critic.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        ]

    def step(self, x: Any, y: Any, generator: Any, critic: Any, backward: Any = torch.Tensor.backward) -> None:
        self.zero_grad()
        backward(F.cross_entropy(self.critic(self.generator(x)), y))
        generator.step()
        self.zero_grad()
        backward(F.cross_entropy(self.critic(self.generator(x).detach()), y))
        critic.step()


class Adversaries(lit.Lit):
    def __init__(self) -> None:
        super().__init__(Pair())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.net.step(batch[1], batch[2], *self.optimizers(), self.manual_backward)

    def configure_optimizers(self) -> Any:
        return self.net.optimizers()


def rigl(model: nn.Module) -> Any:
    return wk.policies.RigL(model, epochs=EPOCHS, sparsity=0.5, interval=2)


WHICH = {"the first": lambda pair: pair.generator, "the second": lambda pair: pair.critic, "both": lambda pair: pair}


@pytest.mark.parametrize("which", WHICH)
def test_of_several_optimizers_those_count_that_hold_the_layers(which: str) -> None:
    module, chosen = Adversaries(), WHICH[which]
    callback = WuskernCallback(lambda model: rigl(chosen(model.net)))
    lit.fit(module, callback, max_epochs=EPOCHS, data=lit.loader(sampler=ORDER))
    pair = Pair()
    optimizers, policy = pair.optimizers(), rigl(chosen(pair))
    for attached in {"the first": optimizers[:1], "the second": optimizers[1:], "both": optimizers}[which]:
        policy.attach(attached)
    for _ in range(EPOCHS):
        for x, y in zip(lit.X.split(lit.BATCH), lit.Y.split(lit.BATCH), strict=True):
            policy.before_step()
            pair.step(x, y, *optimizers)
            policy.after_step()
        policy.after_epoch()
    test_lightning_steps.assert_same(module, callback, pair, policy)
    assert policy.steps == EPOCHS * STEPS


# ---- StochasticWeightAveraging --------------------------------------------------------------------------------------


class Averaged(lit.Lit):
    """Keeps its weights of the beginning of each epoch, which are what is averaged."""

    def on_train_epoch_start(self) -> None:
        self.kept: list[Any] = [*getattr(self, "kept", []), [p.detach().clone() for p in self.net.parameters()]]


def noting(policy: Any, calls: list[str]) -> Any:
    """The policy, which adds the names of its events to ``calls``."""
    for name in ("before_step", "after_step", "after_epoch", "step"):
        own = getattr(policy, name)
        setattr(policy, name, lambda *args, own=own, name=name: (calls.append(name), own(*args))[1])
    return policy


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["WUS", "several", "a frozen prefix"])
def test_averaging_weights_disturbs_no_policy_and_is_not_counted(name: str, order: int) -> None:
    """An epoch without backward follows, in which the BatchNorm is estimated anew, with averaged weights."""
    make, optimizer = test_lightning_steps.METHODS[name]
    module, calls = Averaged(optimizer=optimizer), []
    callback = WuskernCallback(lambda model, optimizer: noting(make(model.net, optimizer), calls), "accuracy")
    averaging = lit.L.callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2, annealing_epochs=1)
    lit.fit(module, *(callback, averaging)[::order], max_epochs=EPOCHS, data=lit.loader(sampler=ORDER))
    assert calls == EPOCHS * (["before_step", "after_step"] * STEPS + ["step"] * callback.policy.evaluates + ["after_epoch"])
    net = nn.Sequential(*lit.network())
    for parameter, *values in zip(net.parameters(), *module.kept[1:EPOCHS], strict=True):
        parameter.data.copy_(torch.stack(values).mean(0))
    for found, expected in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    torch.optim.swa_utils.update_bn(lit.X.split(lit.BATCH), net)
    torch.testing.assert_close(module.net[1].running_mean, net[1].running_mean)
    torch.testing.assert_close(module.net[1].running_var, net[1].running_var)

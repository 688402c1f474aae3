"""A loop with accelerate: attach, the optimizers, clipping, accumulation, checkpoints."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

import wuskern as wk
from tests.policies.test_resume import same
from wuskern.integrations.accelerate import accumulate
from wuskern.train import methods, pairs

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: it is in .ci/trainers.txt")

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
MICRO = 2  # micro-batches of a step; five an epoch: the last step of an epoch has one
WINDOWS = dict(warmup=0, window=1, threshold=0.01, patience=1)
MAKERS = {
    "WUS": lambda model: wk.policies.WUS(model, **WINDOWS),
    "MeProp": lambda model: wk.policies.MeProp(model, ratio=0.3, scope="weight"),
    "RigL": lambda model: wk.policies.RigL(model, epochs=5, sparsity=0.5, interval=2),
}
OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01),
    "wuskern's AdamW": lambda model: wk.optim.AdamW(model.parameters(), 0.01),
}


def network() -> nn.Module:
    torch.manual_seed(3)
    parts = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    return wk.convert(nn.Sequential(*parts))


def image_network() -> nn.Module:
    torch.manual_seed(3)
    front = nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()
    return wk.convert(nn.Sequential(*front, nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)))


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=4)


@pytest.fixture(autouse=True)
def alone():
    """Its state is of the process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Run:
    """Epochs of a loop with accelerate, each followed by an evaluation whose metric stands still."""

    def __init__(self, model, optimizer, policy, **given):
        self.policy = policy
        given = {"gradient_accumulation_steps": MICRO} | given
        self.accelerator = accelerate.Accelerator(cpu=True, **given)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader())
        policy.attach(self.optimizer)
        self.accelerator.register_for_checkpointing(policy)
        self.norms = []

    def epochs(self, count):
        for _ in range(count):
            for x, y in self.loader:
                with accumulate(self.accelerator, self.policy, self.model):
                    loss = nn.functional.cross_entropy(self.model(x), y)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.norms.append(self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            self.policy.after_epoch()
            if self.policy.evaluates:
                self.policy.step(0.5)

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.optimizer.state_dict(), self.policy.state_dict()])


def own_loop(model, optimizer, policy, epochs):
    policy.attach(optimizer)
    norms, data = [], list(loader())
    for _ in range(epochs):
        for step in (data[:2], data[2:4], data[4:]):
            policy.before_step()
            for x, y in step:
                (nn.functional.cross_entropy(model(x), y) / MICRO).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
            optimizer.zero_grad()
            policy.after_step()
        policy.after_epoch()
        if policy.evaluates:
            policy.step(0.5)
    return norms


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MAKERS)
def test_it_equals_a_loop_of_ones_own(name, optimizer):
    model = network()
    policy, plain = MAKERS[name](model), OPTIMIZERS[optimizer](model)
    norms = own_loop(model, plain, policy, 7)

    other = network()
    run = Run(other, OPTIMIZERS[optimizer](other), MAKERS[name](other))
    run.epochs(7)
    assert same(run.state(), [model.state_dict(), plain.state_dict(), policy.state_dict()])
    assert same(run.norms, norms)


@pytest.mark.parametrize("name", [name for name in wk.policies.METHODS if name not in ("sieve", "spfde")])
def test_every_method_goes_on_where_it_was(name, tmp_path):
    def made():
        model = image_network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        method = methods.parse(pairs.trial(name))[0]
        policy = methods.build(method, methods.Given(model, optimizer, X[:2], 20, seed=0), 6).policy
        return Run(model, optimizer, policy)

    whole = made()
    whole.epochs(2)
    whole.accelerator.save_state(str(tmp_path))
    whole.epochs(4)
    resumed = made()
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epochs(4)
    assert same(resumed.state(), whole.state())


def test_steps_are_told_apart_from_micro_batches():
    model, calls = network(), []

    class Told(wk.policies.MeProp):
        def on_step_begin(self):
            calls.append("before")

        def on_step_end(self):
            calls.append("after")

    run = Run(model, torch.optim.SGD(model.parameters(), 0.1), Told(model, ratio=0.5))
    model.register_forward_pre_hook(lambda *_: calls.append("micro"))
    run.epochs(2)
    step, last = ["before", "micro", "micro", "after"], ["before", "micro", "after"]
    assert calls == (step + step + last) * 2


def test_clipping_counts_and_scales_compact_gradients():
    """Against the norm over all of the dense gradients."""
    model = network()
    wk.set_rows(model, wk.Rows([0, 2]))
    dense = copy.deepcopy(model)
    run = Run(model, wk.optim.SGD(model.parameters(), 1.0), Nothing(model))
    run.accelerator.backward(1000 * nn.functional.cross_entropy(model(X), Y))
    assert model[0].weight.grad.is_sparse
    (1000 * nn.functional.cross_entropy(dense(X), Y) / MICRO).backward()
    expected = torch.stack([p.grad.double().square().sum() for p in dense.parameters()]).sum().sqrt()
    assert expected > 10
    assert float(run.accelerator.clip_grad_norm_(model.parameters(), 0.5)) == pytest.approx(float(expected), rel=1e-5)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p.grad.to_dense(), q.grad * (0.5 / expected).float(), atol=1e-7, rtol=1e-4)


class Nothing(wk.policies.Policy):
    def wants(self, name):
        return {}

    def state_dict(self):
        return {}

    def check_state(self, state):
        pass

    def load_state_dict(self, state):
        pass


def test_a_scaler_that_finds_inf_takes_no_step():
    model = network()
    optimizer = wk.optim.AdamW(model.parameters(), 0.1)
    policy = MAKERS["MeProp"](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run = Run(model, optimizer, policy, gradient_accumulation_steps=1)
    prepared = accelerate.optimizer.AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    moved = []
    for factor in (1.0, float("inf"), 1.0):
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(factor * nn.functional.cross_entropy(model(X), Y)).backward()
        prepared.step()
        prepared.zero_grad()
        moved.append(any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)))
    assert moved == [True, False, True]
    assert run.accelerator is not None

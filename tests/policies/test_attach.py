"""attach: a skipped weight, a frozen parameter and a pruned weight stay, however the optimizer is stepped and wrapped."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim import Optimizer

import wuskern as wk
from wuskern.policies import MEST, WUS, AutoFreeze, Compose, ProgressiveFreezing, RigL

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return wk.convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)))


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)


# ---- ways of stepping -----------------------------------------------------------------------------------------------


class Wrapper(Optimizer):
    """As accelerate's: an Optimizer by class that never ran ``Optimizer.__init__``."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Delegate:
    """As Lightning's: no Optimizer, and everything but ``step`` is the inner one's."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        return self._optimizer.step(closure=closure)


class Lookahead(Optimizer):
    """Calls the inner one's step, and moves parameters that have gradients itself, every second time."""

    def __init__(self, base_optimizer):
        super().__init__(base_optimizer.param_groups, {})
        self.base_optimizer, self.count = base_optimizer, 0
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def step(self, closure=None):
        loss = self.base_optimizer.step(closure)
        self.count += 1
        for p, slow in self.slow.items():
            if p.grad is not None and self.count % 2 == 0:
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)
        return loss


class SAM(Optimizer):
    """Climbs by the gradient, asks the closure for that one there, and steps the inner optimizer from where it began."""

    def __init__(self, base_optimizer):
        super().__init__(base_optimizer.param_groups, {})
        self.base_optimizer = base_optimizer

    @torch.no_grad()
    def step(self, closure):
        loss = torch.enable_grad()(closure)()
        climbed = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in climbed]
        for p in climbed:
            p.add_(0.05 * p.grad)
        torch.enable_grad()(closure)()
        for p, old in zip(climbed, before, strict=True):
            p.copy_(old)
        self.base_optimizer.step()
        return loss


def by_hand(optimizer, closure):
    closure()
    optimizer.step()


WAYS = {
    "step": (lambda o: o, by_hand),
    "step(closure)": (lambda o: o, lambda o, closure: o.step(closure)),
    "step(closure=closure)": (lambda o: o, lambda o, closure: o.step(closure=closure)),
    "accelerate": (Wrapper, by_hand),
    "accelerate of a wrapper, closure": (lambda o: Wrapper(Wrapper(o)), lambda o, closure: o.step(closure)),
    "Lightning": (Delegate, lambda o, closure: o.step(closure)),
    "Lookahead": (Lookahead, by_hand),
    "Lookahead, closure": (Lookahead, lambda o, closure: o.step(closure)),
    "SAM": (SAM, lambda o, closure: o.step(closure)),
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def closure_of(net, optimizer):
    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = net(X).square().mean()
        loss.backward()
        return loss

    return closure


def train(net, optimizer, step, skips):
    closure = closure_of(net, optimizer)
    closure()
    for skip in skips:
        wk.set_skip(net, skip)
        step(optimizer, closure)


def parameters(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_a_skipped_weight_stays_and_all_else_moves(way):
    wrap, step = way
    net = network()
    optimizer = wrap(sgd(net))
    WUS(net).attach(optimizer)
    train(net, optimizer, step, [False, False])
    before = parameters(net)
    train(net, optimizer, step, [True, True])
    moved = {name: not torch.equal(p, before[name]) for name, p in net.named_parameters()}
    assert moved == {"0.weight": False, "0.bias": True, "2.weight": False, "2.bias": True}


def test_a_closures_loss_is_what_step_returns():
    net = network()
    optimizer = sgd(net)
    WUS(net).attach(optimizer)
    expected = net(X).square().mean().item()
    assert optimizer.step(closure_of(net, optimizer)).item() == expected


def test_what_is_frozen_stays(way):
    wrap, step = way
    net = network()
    optimizer = wrap(sgd(net))
    policy = ProgressiveFreezing(net, X, start=1, end=3, share=0.9)
    policy.attach(optimizer)
    train(net, optimizer, step, [False, False])
    while not policy.depth:
        policy.step()
    before = parameters(net)
    train(net, optimizer, step, [False])
    moved = {name: not torch.equal(p, before[name]) for name, p in net.named_parameters()}
    assert moved == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


@pytest.mark.parametrize("method", [MEST, RigL])
def test_zeros_gather_no_momentum_and_masks_are_those_of_plain_steps(method, way):
    wrap, step = way

    def run(wrap, step):
        net = network()
        inner = sgd(net)
        optimizer = wrap(inner)
        policy = method(net, epochs=10, sparsity=0.5, interval=2)
        policy.attach(optimizer)
        for i in range(6):
            policy.before_step()
            step(optimizer, closure_of(net, optimizer))
            policy.after_step()
            if i % 2:
                policy.step()
        return net, inner, policy

    net, inner, policy = run(wrap, step)
    assert policy.masks.keys() == {"0"}
    assert not net[0].weight[~policy.masks["0"]].any()
    assert not inner.state[net[0].weight]["momentum_buffer"][~policy.masks["0"]].any()
    if wrap not in (SAM, Lookahead):  # which train to something else
        assert torch.equal(policy.masks["0"], run(lambda o: o, by_hand)[2].masks["0"])


def test_gradients_are_read_once_in_each_step(way):
    wrap, step = way
    net = network()
    optimizer = wrap(sgd(net))
    policy = AutoFreeze(net, X, interval=100)
    policy.attach(optimizer)
    for _ in range(3):
        step(optimizer, closure_of(net, optimizer))
        policy.after_step()
    assert policy.sums[1].tolist() == [3, 3]


def test_several_hooks_are_taken_away_together(way):
    wrap, step = way
    net = network()
    optimizer = wrap(sgd(net))
    WUS(net).attach(optimizer).remove()
    train(net, optimizer, step, [False, False])
    before = net[0].weight.detach().clone()
    train(net, optimizer, step, [True, True])
    assert not torch.equal(net[0].weight, before)


def test_a_gradient_scaler_steps_a_wrapped_optimizer():
    net = network()
    optimizer, scaler = Wrapper(sgd(net)), torch.amp.GradScaler("cpu", init_scale=8.0)
    WUS(net).attach(optimizer)
    for skip in (False, True):
        wk.set_skip(net, skip)
        before = net[0].weight.detach().clone()
        optimizer.zero_grad(set_to_none=False)
        scaler.scale(net(X).square().mean()).backward()
        scaler.step(optimizer.optimizer)
        scaler.update()
        assert torch.equal(net[0].weight, before) is skip


# ---- what a weight is computed from ---------------------------------------------------------------------------------

COMPUTED = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "prune twice": lambda layer: prune.ln_structured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3, 1, 0),
    "weight_norm of hooks": lambda layer: weight_norm(layer),
    "spectral_norm of hooks": lambda layer: spectral_norm(layer),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
    "prune of the bias too": lambda layer: prune.l1_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "bias", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("first", [True, False], ids=["computed first", "attached first"])
@pytest.mark.parametrize("how", COMPUTED)
def test_what_a_weight_is_computed_from_stays_with_it(how, first):
    net = network()
    if first:
        COMPUTED[how](net[0])
    optimizer = sgd(net)
    WUS(net).attach(optimizer)
    if not first:
        COMPUTED[how](net[0])
        optimizer.param_groups[0]["params"] = list(net.parameters())
    train(net, optimizer, by_hand, [False, False])
    before = parameters(net)
    train(net, optimizer, by_hand, [True, True])
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {next(name for name in before if name.startswith("0.bias")), "2.bias"}


def test_a_parameter_of_ones_own_on_a_layer_is_no_weight():
    net = network()
    net[0].weight_gain = nn.Parameter(torch.ones(()))
    net[0].register_forward_hook(lambda layer, args, out: out * layer.weight_gain)
    optimizer = sgd(net)
    WUS(net).attach(optimizer)
    train(net, optimizer, by_hand, [True, True])
    assert net[0].weight_gain.item() != 1


# ---- loads before and after -----------------------------------------------------------------------------------------


def trained(run, steps):
    for _ in range(steps):
        run["policy"].before_step()
        closure_of(run["net"], run["optimizer"])()
        run["optimizer"].step()
        run["policy"].after_step()
        run["policy"].step(0.5)


def state(run):
    return copy.deepcopy({name: part.state_dict() for name, part in run.items()})


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for child in children for t in tensors(child)]


@pytest.mark.parametrize("method", ["mest", "rigl", "composed"])
@pytest.mark.parametrize(
    "order", [("net", "optimizer", "policy"), ("policy", "optimizer", "net"), ("optimizer", "policy", "net")]
)
@pytest.mark.parametrize("attached", range(4), ids="attached after {} loads".format)
@pytest.mark.parametrize("loaded", [False, True], ids=["policy made first", "model loaded before the policy is made"])
def test_a_resumed_run_is_the_run_whatever_comes_first(method, order, attached, loaded):
    make = {
        "mest": lambda net: MEST(net, epochs=40, interval=1, sparsity=0.5),
        "rigl": lambda net: RigL(net, epochs=40, interval=1, sparsity=0.5),
        "composed": lambda net: Compose([MEST(net, epochs=40, interval=1, sparsity=0.5), WUS(net)]),
    }[method]

    def begin(weights=None):
        net = network()
        if weights is not None:
            net.load_state_dict(weights)
        return {"net": net, "optimizer": torch.optim.AdamW(net.parameters(), 1e-2), "policy": make(net)}

    run = begin()
    run["policy"].attach(run["optimizer"])
    trained(run, 6)
    saved = state(run)
    trained(run, 4)
    resumed = begin(saved["net"] if loaded else None)
    for i, name in enumerate((*order, "attach")):
        if i == attached:
            resumed["policy"].attach(resumed["optimizer"])
        if name != "attach":
            resumed[name].load_state_dict(copy.deepcopy(saved[name]))
    for name, part in state(resumed).items():
        assert all(map(torch.equal, tensors(part), tensors(saved[name]))), name
    trained(resumed, 4)
    for name, part in state(resumed).items():
        assert all(map(torch.equal, tensors(part), tensors(state(run)[name]))), name


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer, or a wrapper .* got object"):
        WUS(network()).attach(object())


def test_an_optimizer_that_flattens_inside_of_a_wrapper():
    net = network()
    with pytest.raises(ValueError, match="optimizer: expected one that steps each parameter by itself, got LBFGS"):
        WUS(net).attach(Wrapper(torch.optim.LBFGS(net.parameters())))


def test_a_layer_that_was_replaced_is_named():
    net = network()
    policy = WUS(net)
    net[2] = nn.Linear(8, 7)
    with pytest.raises(
        ValueError, match="model: expected the layer 2 that the policy was made for, got a model in which it was"
    ):
        policy.attach(sgd(net))


def test_a_layer_that_is_replaced_later_is_named_when_the_model_skips():
    net = network()
    optimizer = sgd(net)
    WUS(net).attach(optimizer)
    net[2] = nn.Linear(8, 7)
    closure_of(net, optimizer)()
    optimizer.step()
    net[0].skip = True
    with pytest.raises(ValueError, match="model: expected the layer 2"):
        optimizer.step()

"""wk.optim as an Optimizer of torch: hooks, closures, schedulers, state_dict, copies, and what it refuses."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.nn import Parameter

import wuskern as wk
from tests.optim.models import ROWS, backward, network, row_grad, weight

NAMES = ("SGD", "Adam", "AdamW")
each = pytest.mark.parametrize("name", NAMES)


def optimizer_of(model, name="AdamW", module=wk.optim, **options):
    return getattr(module, name)(model.parameters(), lr=0.05, **({"momentum": 0.9} if name == "SGD" else {}), **options)


def train(model, optimizer, seeds) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def assert_same(a, b) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@each
def test_it_is_torchs_optimizer_with_torchs_defaults(name):
    model = network()
    ours, stock = (getattr(module, name)(model.parameters()) for module in (wk.optim, torch.optim))
    assert isinstance(ours, getattr(torch.optim, name))
    assert ours.defaults == stock.defaults


@each
def test_step_hooks_run_once_a_step(name):
    model, calls = network(), []
    optimizer_of(model, name, torch.optim)  # whose class torch then wraps hooks around, too
    optimizer = optimizer_of(model, name)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, range(2))
    assert calls == ["before", "after"] * 2


def test_a_hook_sees_the_gradients_before_they_are_used():
    model = network()
    optimizer, before = optimizer_of(model), model[2].weight.detach().clone()
    optimizer.register_step_pre_hook(lambda *_: setattr(model[2].weight, "grad", None))
    train(model, optimizer, [0])
    assert torch.equal(model[2].weight, before)


@each
def test_a_closure_computes_the_gradients_and_gives_the_loss(name):
    model, other = network(), network()
    optimizer = optimizer_of(model, name)

    def closure():
        optimizer.zero_grad()
        return backward(model)

    with torch.no_grad():
        loss = optimizer.step(closure)
    train(other, optimizer_of(other, name), [0])
    assert loss.item() == backward(network()).item()
    assert_same(model, other)


def test_lr_schedulers_reach_the_rows():
    parameter = weight(4, 3)
    optimizer = wk.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for lr in (1.0, 0.5, 0.25):
        before = parameter.detach().clone()
        grad = row_grad(parameter, [1])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        torch.testing.assert_close(before - parameter, lr * grad.to_dense())


def test_each_group_has_its_own_settings():
    a, b = weight(4, 3), weight(4, 3)
    optimizer = wk.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1, "momentum": 0.9}], lr=1.0)
    for parameter in (a, b):
        row_grad(parameter, [2])
    optimizer.step()
    torch.testing.assert_close(weight(4, 3) - a, a.grad.to_dense())
    torch.testing.assert_close(weight(4, 3) - b, 0.1 * b.grad.to_dense())
    assert not optimizer.state[a]
    assert list(optimizer.state[b]) == ["momentum_buffer"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:Dynamo:UserWarning")  # of torch's own
def test_a_compiled_step_is_a_step():
    model, other = network(), network()
    optimizer, eager = optimizer_of(model, "SGD"), optimizer_of(other, "SGD")
    compiled = torch.compile(optimizer.step, backend="eager")
    for seed in range(2):
        for net, held, step in ((model, optimizer, compiled), (other, eager, eager.step)):
            held.zero_grad()
            backward(net, seed)
            step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(fused=True), dict(amsgrad=True)], ids=str)
@each
def test_the_full_state_is_laid_out_as_torchs(name, options):
    if name == "SGD" and "amsgrad" in options:
        pytest.skip("SGD has none")
    ours, stock = network(), network()
    optimizer, torchs = optimizer_of(ours, name, **options), optimizer_of(stock, name, torch.optim, **options)
    train(ours, optimizer, [0])
    train(stock, torchs, [0])
    a, b = optimizer.full_state_dict(), torchs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, state in b["state"].items():
        assert a["state"][i].keys() == state.keys()
        for key, value in state.items():
            got = a["state"][i][key]
            assert (got.shape, got.dtype, got.stride()) == (value.shape, value.dtype, value.stride())


@each
def test_a_state_dict_goes_to_torch_and_back(name):
    """Ours, then torch's on dense gradients, then ours: as if it had been ours all along."""
    model, other = network(), network()
    optimizer, all_along = optimizer_of(model, name), optimizer_of(other, name)
    train(model, optimizer, range(2))
    train(other, all_along, range(2))
    torchs = optimizer_of(model, name, torch.optim)
    torchs.load_state_dict(optimizer.full_state_dict())
    for net, held in ((model, torchs), (other, all_along)):
        net[2].rows = None
        train(net, held, [2])
        net[2].rows = wk.Rows(ROWS)
    back = optimizer_of(model, name)
    back.load_state_dict(copy.deepcopy(torchs.state_dict()))
    all_along.load_state_dict(all_along.state_dict())
    train(model, back, [3])
    train(other, all_along, [3])
    assert_same(model, other)
    assert other[2].weight.grad.is_sparse


def test_a_checkpoint_continues_bit_for_bit():
    model, other = network(), network()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(2))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = optimizer_of(other)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for net, held in ((model, optimizer), (other, resumed)):
        train(net, held, range(2, 4))
    assert_same(model, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_goes_on_as_the_first(copied):
    model = network()
    optimizer = optimizer_of(model)
    train(model, optimizer, [0])  # its weight holds a sparse gradient now
    other, its = copied((model, optimizer))
    assert its.param_groups[0]["params"][2] is other[2].weight
    for net, held in ((model, optimizer), (other, its)):
        train(net, held, [1, 2])
    assert_same(model, other)
    assert other[2].weight.grad.is_sparse


def test_a_state_in_another_memory_format_than_its_weight():
    """As a checkpoint leaves it whose model was not in channels_last."""
    a, b = weight(4, 3, 3, 3), weight(4, 3, 3, 3)
    optimizers = [wk.optim.AdamW([p], lr=0.1) for p in (a, b)]
    for parameter, optimizer in zip((a, b), optimizers, strict=True):
        row_grad(parameter, [0, 2])
        optimizer.step()
    b.data = b.data.contiguous(memory_format=torch.channels_last)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(a, b)


# ---- what it refuses, and leaves alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["capturable", "differentiable"])
@each
def test_capture_and_differentiation_are_refused_by_name(name, argument):
    if name == "SGD" and argument == "capturable":
        pytest.skip("SGD has no such argument")
    with pytest.raises(ValueError, match=f"{argument}: expected False, got True"):
        getattr(wk.optim, name)([weight(3, 3)], **{argument: True})
    optimizer = getattr(wk.optim, name)([weight(3, 3)])
    with pytest.raises(ValueError, match=f"{argument}: expected False, got True"):
        optimizer.add_param_group({"params": [weight(3, 3)], argument: True})
    assert len(optimizer.param_groups) == 1


def test_a_loaded_capturable_group_is_refused_before_anything_moves():
    parameter, bias = weight(3, 3), weight(3)
    optimizer = wk.optim.Adam([parameter, bias])
    optimizer.param_groups[0]["capturable"] = True
    row_grad(parameter, [1])
    bias.grad = torch.ones(3)
    with pytest.raises(ValueError, match="capturable: expected False, got True"):
        optimizer.step()
    assert torch.equal(bias, weight(3))


@pytest.mark.parametrize("bad", [dict(lr=-1.0), dict(foreach=True, fused=True)], ids=str)
def test_torchs_own_refusals_stay(bad):
    with pytest.raises((ValueError, RuntimeError), match=r"Invalid learning rate|cannot be `True` together"):
        wk.optim.AdamW([weight(3, 3)], **bad)


def test_a_dtensor_keeps_its_dense_gradient(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        ours, stock = (Parameter(DTensor.from_local(weight(4, 3).detach(), mesh)) for _ in range(2))
        for parameter, module in ((ours, wk.optim), (stock, torch.optim)):
            optimizer = module.AdamW([parameter], lr=0.1)
            (parameter * parameter).sum().backward()
            optimizer.step()
        assert not ours.grad.to_local().is_sparse
        assert torch.equal(ours.to_local(), stock.to_local())
    finally:
        dist.destroy_process_group()


def test_a_policy_keeps_a_skipped_weight_where_it_is():
    """Rows from before the decision, too."""
    model = network()
    optimizer, before = optimizer_of(model), model[2].weight.detach().clone()
    wk.policies.WUS(model).attach(optimizer)
    backward(model)
    wk.set_skip(model, True)
    optimizer.step()
    assert torch.equal(model[2].weight, before)

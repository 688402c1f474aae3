"""A converted layer in every use, and after everything, that a stock layer goes through."""

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.fx
import torch.nn as nn
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as prune
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from tests.cases import LAYERS
from tests.oracle import assert_same_bits, check, check_layer, gradients, plain, set_flags

pytestmark = pytest.mark.usefixtures("one_thread")

STOCK = [
    pytest.param(lambda: nn.Linear(16, 7), (5, 16), id="linear"),
    pytest.param(lambda: nn.Linear(16, 7, bias=False), (2, 5, 16), id="linear-without-bias"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 8, 8), id="conv2d"),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"), (3, 4, 8, 8), id="conv2d-groups"),
]

FLAGS = [
    pytest.param(True, id="skip"),
    pytest.param(wk.Rows([1, 4]), id="rows"),
    pytest.param(wk.Rows([0, 5], scope="both", bias="rows"), id="rows-of-both"),
]


# ---- uses: (layer, x) -> y ------------------------------------------------------------------------------------------


def twice(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + layer(2 * x)


def once_each_way(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    flag = getattr(layer, "rows", None) or getattr(layer, "skip", False)
    set_flags(layer, False)
    z = layer(3 * x)
    set_flags(layer, flag)
    return y + z


def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False)


def checkpointed_reentrant(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=True)


def checkpointed_twice(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(twice, layer, x, use_reentrant=False) + checkpointed(layer, x)


def input_without_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.detach()) + x.sum()


def frozen_weight(layer: nn.Module, x: Tensor) -> Tensor:
    layer.weight.requires_grad_(False)
    return layer(x)


def frozen_bias(layer: nn.Module, x: Tensor) -> Tensor:
    if layer.bias is not None:
        layer.bias.requires_grad_(False)
    return layer(x)


def only_the_bias(layer: nn.Module, x: Tensor) -> Tensor:
    layer.weight.requires_grad_(False)
    return layer(x.detach()) + x.sum()


def in_place_after(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).mul_(2).relu_()


def weight_used_elsewhere(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) * layer.weight.pow(2).sum()


def hooked(layer: nn.Module, x: Tensor) -> Tensor:
    """Each kind of hook changes what passes through it."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
        layer.register_forward_hook(lambda _, args, y: y + args[0].sum()),
        layer.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3,)),
        layer.register_full_backward_hook(lambda _, grads_in, __: tuple(g if g is None else g * 5 for g in grads_in)),
    ]
    y = layer(x)
    for handle in handles:
        handle.remove()
    return y


def autocast_bf16(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def autocast_fp16(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.float16):
        return layer(x)


def autocast_of_half_a_net(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with torch.autocast("cpu", enabled=False):
            z = layer(x)
        return z + y + layer(x)  # the weight's cast copy is shared with the first call


USES = [
    twice, once_each_way, checkpointed, checkpointed_reentrant, checkpointed_twice, input_without_gradient, frozen_weight,
    frozen_bias, only_the_bias, in_place_after, weight_used_elsewhere, hooked, autocast_bf16, autocast_fp16,
    autocast_of_half_a_net,
]  # fmt: skip


@pytest.mark.pairs
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_in_use(make, shape, use, flag):
    check_layer(make(), torch.randn(shape), use, flag=flag)


# ---- changes: layer -> layer ----------------------------------------------------------------------------------------


def pickled(layer: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(layer))


def saved_and_loaded(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def frozen_and_thawed(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False).requires_grad_()


def through_meta(layer: nn.Module) -> nn.Module:
    state = layer.state_dict()
    layer = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    layer.load_state_dict(state)
    return layer


def assigned(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer).to("meta")
    twin.load_state_dict(layer.state_dict(), assign=True)
    return twin


def doubled(layer: nn.Module) -> nn.Module:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    return parametrize.register_parametrization(layer, "weight", Double())


def doubled_and_removed(layer: nn.Module) -> nn.Module:
    return parametrize.remove_parametrizations(doubled(layer), "weight")


def spectrally_normed(layer: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return parametrizations.spectral_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


def pruned_for_good(layer: nn.Module) -> nn.Module:
    return prune.remove(pruned(layer), "weight")


def channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)


def in_a_net(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.LeakyReLU(0.5), nn.Flatten())


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, copy.copy, pickled, saved_and_loaded]
CHANGES: list[Callable[[nn.Module], nn.Module]] = [
    *COPIES, nn.Module.train, nn.Module.eval, frozen_and_thawed, nn.Module.share_memory, through_meta, assigned,
    nn.Module.bfloat16, channels_last, doubled, doubled_and_removed, parametrizations.weight_norm, pruned, pruned_for_good,
    in_a_net,
]  # fmt: skip


@pytest.mark.pairs
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_after_a_change(make, shape, change, flag):
    check_layer(make(), torch.randn(shape), change=change, flag=flag)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_a_weight_that_is_another_one_each_time(make, shape, flag):
    check(make(), torch.randn(shape), change=spectrally_normed, flag=flag)


@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_state_dicts_both_ways(make, shape):
    one, other = make(), wk.convert(make())
    other.skip = True
    one.load_state_dict(other.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    other.load_state_dict(make().state_dict(), strict=True)
    assert other.skip is True


@pytest.mark.parametrize(
    "change", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_and_loaded]
)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_a_copy_has_a_flag_of_its_own(make, shape, change):
    layer = make()
    layer.skip = True
    twin = change(layer)
    assert (type(twin), twin.skip) == (type(layer), True)
    twin.skip = False
    assert layer.skip is True
    assert repr(layer) == repr(twin)[:-1] + ", skip=True)"


# ---- several threads, meta tensors, operations counted --------------------------------------------------------------


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_threads_that_run_backward_side_by_side(make, shape, flag):
    layer = set_flags(wk.convert(make()), flag)
    inputs = [torch.randn(shape) for _ in range(16)]

    def dx_and_db(x: Tensor) -> list[Tensor]:
        x.requires_grad_()
        return torch.autograd.grad(layer(x).square().sum(), [x] + ([] if layer.bias is None else [layer.bias]))

    expected = [dx_and_db(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for ours, one_by_one in zip(threads.map(dx_and_db, inputs), expected, strict=True):
            assert all(map(torch.equal, ours, one_by_one))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_shapes_on_the_meta_device(make, shape, flag):
    layer = set_flags(wk.convert(make().to("meta")), flag)
    stock = plain(make().to("meta"))
    if flag is True:
        set_flags(stock, True)
    x = torch.empty(shape, device="meta")
    ours, expected = (gradients(m, x) for m in (layer, stock))
    assert {k: v if v is None else (v.shape, v.stride(), v.dtype, v.device) for k, v in ours.items()} == {
        k: v if v is None else (v.shape, v.stride(), v.dtype, v.device) for k, v in expected.items()
    }


@pytest.mark.parametrize(
    ("layer", "shape", "product", "bias"),
    [  # multiply and add are two operations; a sum of n numbers is n - 1
        (wk.SkippableLinear(64, 32), (2, 8, 64), 2 * 16 * 64 * 32, 32 * 15),
        (wk.SkippableLinear(64, 32, bias=False), (16, 64), 2 * 16 * 64 * 32, 0),
        (wk.SkippableConv2d(6, 4, (3, 5), padding=(1, 2)), (2, 6, 7, 9), 2 * (2 * 4 * 7 * 9) * (6 * 3 * 5), 4 * (2 * 63 - 1)),
    ],
    ids=["linear", "linear-without-bias", "conv2d"],
)
def test_a_skip_saves_one_product_of_three(layer, shape, product, bias):
    counted = {}
    for layer.skip in (False, True):
        x = torch.randn(shape, requires_grad=True)
        with FlopCounterMode(display=False) as flops:
            layer(x).sum().backward()
        counted[layer.skip] = flops.get_total_flops()
    assert counted == {False: 3 * product, True: 2 * product + bias}


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, in torch 2.15 by another class
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("make", "shape"), STOCK)
def test_scripted_and_symbolically_traced_it_is_the_stock_layer(make, shape, skip):
    stock, x = make(), torch.randn(shape)
    ours, expected = wk.convert(copy.deepcopy(stock)), gradients(stock, x)
    if skip:
        set_flags(ours, True)
    assert_same_bits(gradients(torch.jit.script(ours), x), expected)
    assert_same_bits(gradients(torch.fx.symbolic_trace(ours), x), expected)

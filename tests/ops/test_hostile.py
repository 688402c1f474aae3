"""Ops that an enemy calls. (python -m tests.fuzz.hostile makes many more calls, make sanitize-cpu beside sanitizers.)"""

import random

import pytest
import torch

import wuskern as wk
from tests import emulation
from tests.fuzz import hostile, right_calls
from tests.rowsparse import need_library
from wuskern import ops

CONV = {"dy": torch.randn(2, 3, 4, 4), "x": torch.randn(2, 2, 6, 6), "rows": torch.tensor([0, 2]), "kernel_size": (3, 3)}
CONV |= {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def test_hostile_calls_are_refused_in_words_or_answered_rightly(one_thread):
    need_library()
    calls = hostile.Hostile(emulated=emulation.obstacle() is None)
    faults = [fault for i in range(600) if (fault := calls(random.Random(f"here {i}")))]
    assert faults == []
    for how in ("refused", "answered"):
        assert sum(calls.ended[f"{where}: {how}"] for where in ("public", "wuskern", "native")) > 50


def test_every_registered_op_has_its_enemy():
    spaces = "wuskern", "wuskern_native"
    names = {name for space, name in (full.split("::") for full in torch._C._dispatch_get_all_op_names()) if space in spaces}
    of_python = {"deliver", "grouped_wgrad"}  # no code of ours below
    of_a_gpu = {"spread_rows"}  # tests/delivery/test_spread_rows.py runs it on the emulation, wrong calls included
    assert names - {"cpu_capability", "cuda_architectures"} - of_python - of_a_gpu <= set(right_calls.OF)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [-1, 2**30, 2**62])
def test_integers_of_a_convolution_out_of_their_range(name, value):
    wrong = CONV | {name: (1, value)}
    with pytest.raises(ValueError, match=f"{name}: expected integers from"):
        ops.rowsparse_wgrad_conv2d(*wrong.values())
    with pytest.raises((ValueError, RuntimeError), match=f"{name}: expected"):
        torch.ops.wuskern.rowsparse_wgrad_conv2d(*wrong.values())


@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation"])
def test_integers_of_a_convolution_that_are_zero(name):
    with pytest.raises(ValueError, match=f"{name}: expected integers from 1"):
        ops.rowsparse_wgrad_conv2d(*(CONV | {name: (1, 0)}).values())


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [(), (1,), (1, 1, 1), 1, (1, 1.0), None])
def test_what_is_no_pair_of_integers(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected two integers"):
        ops.rowsparse_wgrad_conv2d(*(CONV | {name: value}).values())


@pytest.mark.parametrize("lists", [(), (3,), (3, 3, 3)])
def test_lists_of_another_length_in_the_compiled_ops(lists):
    """torch.ops passes them on, whatever a schema says of their length."""
    need_library()
    dy, x, right = torch.zeros(2, 3, 6, 6), torch.zeros(2, 4, 6, 6), [(3, 3), (1, 1), (1, 1)]
    names = "kernel_size", "padding", "dilation"
    for place, name in enumerate(names):
        geometry = [*right[:place], lists, *right[place + 1 :]]
        with pytest.raises(RuntimeError, match=f"{name}: expected two integers, got {len(lists)}"):
            torch.ops.wuskern_native.unfold_gradient(dy, (6, 6), *geometry, 0)
        with pytest.raises(RuntimeError, match=f"{name}: expected two integers, got {len(lists)}"):
            torch.ops.wuskern_native.direct_wgrad(dy, x, *geometry, False)


def test_sizes_whose_product_is_zero_in_64_bits():
    need_library()
    with pytest.raises(RuntimeError, match="scores: expected whole blocks"):
        torch.ops.wuskern_native.select_rows(torch.rand(8), 1, 2**32, 2**32)


@pytest.mark.parametrize("backward", ["linear_backward", "conv2d_backward"])
def test_another_device(backward):
    dy, x, weight = (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 1, 1))
    if backward == "linear_backward":
        dy, x, weight = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="weight: expected it on cpu as dy is, got meta"):
        getattr(wk.functional, backward)(dy, x, weight.to("meta"), None)


@pytest.mark.parametrize("op", [name for name in ops.NAMES if name not in ("bias_grad", "row_stats", "select_rows")])
def test_tensors_of_one_op_on_two_devices(op):
    """Of every op with more than one tensor, each in turn."""
    right = right_calls.OF[op](random.Random("right"))
    schema = getattr(torch.ops.wuskern, op).default._schema
    for place, argument in enumerate(schema.arguments):
        if place and isinstance(right[place], torch.Tensor):
            wrong = [*right[:place], right[place].to("meta"), *right[place + 1 :]]
            with pytest.raises(
                ValueError, match=f"{argument.name}: expected it on cpu as {schema.arguments[0].name} is, got meta"
            ):
                getattr(torch.ops.wuskern, op).default(*wrong)

"""Activation checkpointing and deterministic mode: what a layer's flags may do while a step is under way."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import CheckpointError, checkpoint

import wuskern as wk
from tests.cases import LAYERS

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS = {
    "dense": (False, None, None),
    "skip": (True, None, None),
    "top-k": (False, wk.TopK(k=2), None),
    "top-k of both": (False, wk.TopK(k=2, score="l2", scope="both"), None),
    "rows": (False, wk.Rows([0, 2]), None),
    "more rows": (False, wk.Rows([0, 1, 2]), None),
    "tokens": (False, None, wk.Tokens(k=2)),
}


CHANGES = list(itertools.permutations(FLAGS, 2))


def step(layer, x, forward, backward, reentrant=False):
    """The gradients of a checkpointed call with one setting in forward, and another from then on."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    layer.skip, layer.rows, layer.tokens = FLAGS[forward]
    y = checkpoint(layer, x, use_reentrant=reentrant)
    layer.skip, layer.rows, layer.tokens = FLAGS[backward]
    y.square().sum().backward()
    return [x.grad, layer.weight.grad, layer.bias.grad]


def same(a, b):
    return all((s is None) == (t is None) and (s is None or torch.equal(s, t)) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
@pytest.mark.parametrize("change", CHANGES, ids=" then ".join)
def test_a_flag_that_changes_under_checkpointing_is_an_error_or_does_nothing(change, make, shape):
    layer, x = make(), torch.randn(shape)
    expected = step(layer, x, change[0], change[0])
    try:
        found = step(layer, x, *change)
    except CheckpointError:
        assert {"dense", "skip"} & set(change)  # these save less, or more
    else:
        assert same(found, expected)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
@pytest.mark.parametrize("change", CHANGES, ids=" then ".join)
def test_reentrant_checkpointing_takes_the_flag_of_its_second_forward(change, make, shape):
    layer, x = make(), torch.randn(shape)
    expected = step(layer, x, change[1], change[1], reentrant=True)
    assert same(step(layer, x, *change, reentrant=True), expected)


@pytest.mark.parametrize("compact", [False, True], ids=["dense form", "compact"])
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 16), lambda: nn.Conv2d(3, 16, 3)], ids=["linear", "conv2d"])
def test_deterministic_mode_refuses_nothing_and_gives_the_same_bits(make, flag, compact):
    layer = wk.convert(nn.Sequential(make()))[0]
    batches = [torch.randn((40, 24) if layer.weight.ndim == 2 else (4, 3, 9, 9)) for _ in range(3)]

    def accumulated():
        layer.weight.grad = layer.bias.grad = None
        layer.skip, rows, layer.tokens = FLAGS[flag]
        layer.rows = dataclasses.replace(rows, sparse=True) if compact and rows is not None else rows
        for x in batches:
            layer(x).square().sum().backward()
        held = layer.weight.grad
        parts = [held._indices(), held._values()] if held is not None and held.is_sparse else [held]
        return [*parts, layer.bias.grad]

    torch.use_deterministic_algorithms(True)
    try:
        assert same(accumulated(), accumulated())
    finally:
        torch.use_deterministic_algorithms(False)

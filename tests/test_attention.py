"""PyTorch's own transformer layers: their fast path reads weights without calling a layer."""

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.oracle import check, gradients, set_flags

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder_layer(**options: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)


@pytest.mark.parametrize("mode", [nn.Module.train, nn.Module.eval], ids=["train", "eval"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_trains_as_stock(mode, norm_first):
    check(encoder_layer(norm_first=norm_first), torch.randn(3, 5, 8), change=mode)


def test_an_encoder_layer_skips_its_two_linears():
    layer = set_flags(wk.convert(encoder_layer()), True)
    missing = {name for name, gradient in gradients(layer, torch.randn(3, 5, 8)).items() if gradient is None}
    assert missing == {"linear1.weight", "linear2.weight"}


@pytest.mark.parametrize("skip", [False, True])
def test_the_fast_path_gives_the_bits_of_stock(skip, monkeypatch):
    stock = encoder_layer().eval()
    ours = set_flags(wk.convert(copy.deepcopy(stock)), skip)
    x, called = torch.randn(3, 5, 8), []
    monkeypatch.setattr(wk.SkippableLinear, "forward", lambda *_: called.append(1))
    with torch.no_grad():
        assert torch.equal(ours(x), stock(x))
    assert called == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("skip", [False, True])
def test_a_padded_batch_in_the_encoder(skip):
    stock = nn.TransformerEncoder(encoder_layer(), 2).eval()
    ours = set_flags(wk.convert(copy.deepcopy(stock)), skip)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(ours(x, src_key_padding_mask=padding), stock(x, src_key_padding_mask=padding))


def test_a_whole_transformer():
    def translate(model: nn.Module, x: Tensor) -> Tensor:
        return model(x, x[:, 1:])

    check(nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True), torch.randn(2, 5, 8), translate)

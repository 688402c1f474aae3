"""The activation cache on networks of torchvision and timm, against copies of them in stock PyTorch."""

import copy

import pytest
import torch
from torch import nn

import wuskern as wk
from wuskern.policies import ActivationCache, SingleShotFreezing

SAMPLES, INDEX = 10, torch.tensor([3, 0, 9])
NETWORKS = {  # what is kept, where a share of .6 of the layers is frozen: the last whole blocks, and parts of the next one
    "timm vit_tiny_patch16_224": ["blocks.6", "blocks.7.attn.norm"],
    "timm swin_tiny_patch4_window7_224": ["layers.2.blocks.2", "layers.2.blocks.3.norm1"],
    "timm efficientnet_lite0": ["blocks.4.1"],
    "torchvision resnet18": ["layer2", "layer3.0.bn2"],
    "torchvision mobilenet_v2": ["features.11.conv.0"],
}


@pytest.fixture
def make(torchvision):
    timm = pytest.importorskip("timm")

    def made(name):
        library, name = name.split()
        if library == "timm":
            return timm.create_model(name, num_classes=5, drop_path_rate=0.0)
        return torchvision.models.get_model(name, weights=None, num_classes=5, **{"dropout": 0.0} if "mobile" in name else {})

    return made


@pytest.mark.more
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_as_without_the_cache(make, name):
    torch.manual_seed(0)
    model, x = make(name).train(), torch.randn(SAMPLES, 3, 224, 224)
    stock = copy.deepcopy(model)
    freezing = SingleShotFreezing(wk.convert(model), x[:2], at=0, share=0.6)
    frozen = {name for name, p in model.named_parameters() if any(p is q for q in freezing.frozen_parameters())}
    for name_, p in stock.named_parameters():
        p.requires_grad_(name_ not in frozen)
    for theirs in stock.modules():  # batch norms of the front are in evaluation mode
        if isinstance(theirs, nn.BatchNorm2d) and theirs.weight is not None and not theirs.weight.requires_grad:
            theirs.eval()
    cache = ActivationCache(freezing, x, chunk=4)
    cache(INDEX)  # kept from here on
    cache(INDEX).square().sum().backward()
    stock(x[INDEX]).square().sum().backward()
    assert cache.reason is None
    assert [cache._runs.names[site[0]] for site, kind in cache._kept.kinds.items() if kind.read] == NETWORKS[name]
    largest = max(float(p.grad.abs().max()) for p in stock.parameters() if p.grad is not None)
    for (name_, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name_
        if ours.grad is not None:  # by other sums: chunks of four samples
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4 * largest)

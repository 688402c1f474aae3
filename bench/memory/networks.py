"""Networks with random weights, and ways to train their biases alone: each changes a network in place or returns another."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import wuskern as wk

BATCH, SIDE = 8, 224
TEXTS, LENGTH = 16, 128
NORMS = nn.modules.batchnorm._BatchNorm
Change = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Network:
    """One network and its input.

    Attributes:
        make, loss: the network, in training mode, and the loss of a step.
        blocks: the class names of the modules that checkpointing takes as a whole.
        of_images: whether it is torchvision's.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    blocks: tuple[str, ...]
    of_images: bool = True


def _text(dropout: float) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    torch.manual_seed(0)
    config = BertConfig(**shape, num_labels=20, attention_probs_dropout_prob=dropout, attn_implementation="sdpa")
    return BertForSequenceClassification(config).train()


def _image(name: str) -> nn.Module:
    """A network of torchvision, of which PyPI's is built for CUDA: beside a torch without it, two operations are missing that
    no network here calls."""
    if torch.version.cuda is None:
        for missing in ("nms", "qnms"):
            torch.library.define(f"torchvision::{missing}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    torch.manual_seed(0)
    return getattr(models, name)().train()


def _loss_of_text(model: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30522, (TEXTS, LENGTH), generator=draw)
    return model(input_ids=ids, labels=torch.randint(0, 20, (TEXTS,), generator=draw)).loss


def _loss_of_image(model: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    scores = model(torch.randn(BATCH, 3, SIDE, SIDE, generator=draw))
    return nn.functional.cross_entropy(scores, torch.arange(BATCH))


NETWORKS = {
    "MiniLM, functional attention dropout": Network(partial(_text, 0.1), _loss_of_text, ("BertLayer",), False),
    "MiniLM, no attention dropout": Network(partial(_text, 0.0), _loss_of_text, ("BertLayer",), False),
    "ResNet-50": Network(partial(_image, "resnet50"), _loss_of_image, ("Bottleneck",)),
    "MobileNetV2": Network(partial(_image, "mobilenet_v2"), _loss_of_image, ("InvertedResidual",)),
}


# ---- ways to train ---------------------------------------------------------------------------------------------------


def _but_embeddings(model: nn.Module) -> nn.Module:
    """Embeddings stay as they are, and the head of a text network trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name or "LayerNorm" in name)
    return model


def _constant_scales(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, NORMS):
            module.weight.requires_grad_(False)
    return model


def _bias_only(model: nn.Module) -> nn.Module:
    """PyTorch's way: weights need no gradient."""
    for module in _constant_scales(_but_embeddings(model)).modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.requires_grad_(False)
    return model


def _skip(model: nn.Module, memory: bool) -> nn.Module:
    wk.convert(_constant_scales(_but_embeddings(model)), memory=memory)
    wk.set_skip(model, True)
    return model


def _evaluating(change: Change, model: nn.Module) -> nn.Module:
    """The way with BatchNorm in evaluation mode."""
    model = change(model)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
    return model


def _checkpointed(blocks: tuple[str, ...], model: nn.Module) -> nn.Module:
    """Only biases train, and each block is computed again in backward."""
    for module in _bias_only(model).modules():
        if type(module).__name__ in blocks:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return model


def _memsave(model: nn.Module) -> nn.Module:
    """The layers of another library, from its public source, where it is at hand."""
    from memsave_torch.nn import convert_to_memory_saving

    return convert_to_memory_saving(_bias_only(model), dropout=False)  # its Dropout raises with this PyTorch


def ways(network: Network) -> dict[str, Change]:
    """Each way to train by its name."""
    found: dict[str, Change] = {"dense": lambda model: model, "biases, stock": _bias_only}
    found["biases, stock, blocks checkpointed"] = partial(_checkpointed, network.blocks)
    if network.of_images:  # the library has no Linear and no GELU
        found["biases, memsave_torch"] = _memsave
    found["biases, skip"] = partial(_skip, memory=False)
    found["biases, skip, memory=True"] = partial(_skip, memory=True)
    return found


def ways_in_evaluation(network: Network) -> dict[str, Change]:
    """The same with BatchNorm in evaluation mode."""
    return {name: partial(_evaluating, change) for name, change in ways(network).items()}


NETWORKS_BY_MODE: dict[str, dict[str, Any]] = {
    "batch statistics": {"networks": tuple(NETWORKS), "ways": ways},
    "evaluation": {"networks": ("ResNet-50", "MobileNetV2"), "ways": ways_in_evaluation},
}

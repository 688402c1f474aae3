"""A small GPT-2 of transformers, which is made of Conv1D: it trains as stock does."""

import copy
import os
import pickle

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = torch.arange(28).reshape(4, 7) * 3 % 37 + 3


@pytest.fixture(autouse=True)
def _without_transformers():
    """Not the stand-in of the tests beside this one."""


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=8, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).double().train()


def loss_of(model: nn.Module, step: int) -> Tensor:
    batch = TOKENS.roll(step)
    return model(input_ids=batch, labels=batch).loss


def train(model: nn.Module, update: torch.optim.Optimizer, steps: int = 5) -> nn.Module:
    for step in range(steps):
        loss_of(model, step).backward()
        update.step()
        update.zero_grad()
    return model


def conv1ds(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Conv1D)}


def test_all_nine_layers_with_weights_are_converted():
    found = wk.survey(wk.convert(gpt2()))
    assert (len(found.asked), found.share) == (9, 1.0)
    assert [f.name for f in found if type(f.module) is wk.SkippableLinear] == ["lm_head"]


def test_dense_it_trains_to_the_same_bits():
    stock = gpt2()
    ours = wk.convert(copy.deepcopy(stock))
    for model in (ours, stock):
        train(model, torch.optim.AdamW(model.parameters(), 0.01))
    for name, value in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_skip_leaves_the_weights_and_trains_the_biases():
    model = wk.convert(gpt2())
    before = copy.deepcopy(model.state_dict())
    wk.set_plan(model, skip=True, filter_fn=lambda module, name: isinstance(module, Conv1D))
    train(model, wk.optim.AdamW(model.parameters(), 0.01))
    for name in conv1ds(model):
        assert torch.equal(model.state_dict()[f"{name}.weight"], before[f"{name}.weight"])
        assert not torch.equal(model.state_dict()[f"{name}.bias"], before[f"{name}.bias"])


def test_columns_train_as_slices_that_are_parameters_of_their_own():
    """Stock is the model with each weight put together of a constant and a slice that trains."""
    stock, columns = gpt2(), [1, 5, 6, 11]
    ours = wk.convert(copy.deepcopy(stock))
    wk.set_plan(ours, columns=wk.Columns(columns), filter_fn=lambda module, name: isinstance(module, Conv1D))
    train(ours, wk.optim.AdamW(ours.parameters(), 0.01))

    weights = {f"{name}.weight": module.weight.detach() for name, module in conv1ds(stock).items()}
    slices = {name: Parameter(weight[columns].clone()) for name, weight in weights.items()}
    others = [p for name, p in stock.named_parameters() if name not in weights]

    class Joined(nn.Module):
        def forward(self, **batch: Tensor) -> Tensor:
            joined = {n: w.index_copy(0, torch.tensor(columns), slices[n]) for n, w in weights.items()}
            return torch.func.functional_call(stock, joined, kwargs=batch)

    train(Joined(), torch.optim.AdamW([*slices.values(), *others], 0.01))
    rest = [i for i in range(16) if i not in columns]
    for name, part in slices.items():
        torch.testing.assert_close(ours.get_parameter(name)[columns], part, rtol=1e-9, atol=1e-10)
        assert torch.equal(ours.get_parameter(name)[rest], weights[name][rest])
    torch.testing.assert_close(ours.lm_head.weight, stock.lm_head.weight, rtol=1e-9, atol=1e-10)


@pytest.mark.more
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_it_gives_eagers_gradients():
    torch._dynamo.reset()
    model = wk.convert(gpt2())
    wk.set_plan(model, columns=wk.TopColumns(ratio=0.5), rows=wk.TopK(ratio=0.5), tokens=wk.Tokens(ratio=0.5))
    wk.set_plan(model, skip=True, filter_fn=lambda module, name: name.endswith("c_attn"))
    grads = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        loss_of(call, 0).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)
    torch._dynamo.reset()


def test_a_pickle_finds_the_class_again():
    model = wk.convert(gpt2())
    wk.set_skip(model, True)
    twin = pickle.loads(pickle.dumps(model))
    assert all(layer.skip for layer in conv1ds(twin).values())
    torch.testing.assert_close(loss_of(twin, 0), loss_of(model, 0))
    assert {type(layer) for layer in conv1ds(wk.revert(twin)).values()} == {Conv1D}

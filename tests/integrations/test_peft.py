"""Models with adapters of peft: what the adapters hold stays dense, and the base, whose weights are frozen, skips."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode

import wuskern as wk
from wuskern.convert import ADAPTER

peft = pytest.importorskip("peft", reason="peft is not installed: it is in .ci/trainers.txt")

from tests.integrations.trainer import assert_same, bert, gpt2, trainer, weights  # noqa: E402  # it needs transformers

pytestmark = [
    pytest.mark.more,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # of peft, by transformers
]

SEQUENCES = dict(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8)
KINDS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"], bias="all"),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["query", "word_embeddings"], use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]),
    "prompt": lambda: peft.PromptEncoderConfig(**SEQUENCES),
    "prefix": lambda: peft.PrefixTuningConfig(**SEQUENCES, prefix_projection=True),
}
ADAPTERS = {"lora": 9, "dora": 4, "ia3": 0, "prompt": 5, "prefix": 4}  # Linears and Embeddings, of two layers


def adapted(kind: str) -> nn.Module:
    model = bert()
    torch.manual_seed(1)
    return peft.get_peft_model(model, KINDS[kind]())


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_stay_dense_and_all_of_the_base_is_converted(kind, embeddings):
    stock = sum(isinstance(module, nn.Linear | nn.Embedding if embeddings else nn.Linear) for module in bert().modules())
    model = wk.convert(adapted(kind), embeddings=embeddings)
    left_alone = [finding for finding in wk.survey(model) if finding.obstacle == ADAPTER]
    converted = [m for m in model.modules() if isinstance(m, wk.SkippableLinear | wk.SkippableEmbedding)]
    assert len(left_alone) == ADAPTERS[kind]
    assert len(converted) == stock
    assert not any(p.requires_grad for module in converted for name, p in module.named_parameters() if name == "weight")


def test_conv1d_under_lora_is_converted():
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    wk.convert(model)
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert type(layer.base_layer).__name__ == "SkippableConv1D"
    assert type(layer.lora_A["default"]) is nn.Linear


def test_an_adapter_is_converted_where_it_is_given_itself():
    model = adapted("lora")
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query.lora_A["default"]
    assert type(wk.convert(layer)) is wk.SkippableLinear


def test_a_model_that_was_converted_first_has_dense_matrices_of_lora():
    model = peft.get_peft_model(wk.convert(bert()), peft.LoraConfig(r=2, target_modules=["query"]))
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert type(layer.base_layer) is wk.SkippableLinear
    assert type(layer.lora_A["default"]) is nn.Linear


def test_a_skip_of_the_base_changes_no_gradient():
    expected, model = adapted("lora"), wk.convert(adapted("lora"))
    wk.set_skip(model, True)
    ids, labels = torch.arange(3, 17).reshape(2, 7), torch.tensor([0, 2])
    for one in (expected, model):
        one(input_ids=ids, labels=labels).loss.backward()
    grads = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    assert len(grads) > 20
    assert any("lora_A" in name for name in grads)
    assert_same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, grads)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Masks(TorchDispatchMode):
    """What each convolution's backward is asked for: gradients of input, weight, bias."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


def test_a_frozen_convolution_with_a_bias_that_trains_computes_no_weight_gradient():
    """Asked for the bias's gradient, the library on a CPU computes the weight's as well."""
    torch.manual_seed(0)
    stock = peft.get_peft_model(Convolutions(), peft.LoraConfig(r=2, target_modules=["head"], bias="all"))
    model = wk.convert(copy.deepcopy(stock))
    wk.set_skip(model, True)
    assert type(model.base_model.model.first) is wk.SkippableConv2d
    x, seen = torch.randn(2, 3, 6, 6), []
    for one in (stock, model):
        loss = one(x).square().sum()
        with Masks() as masks:
            loss.backward()
        seen.append(masks.seen)
    assert seen[0] == [[True, False, True], [False, False, True]]
    assert not any(weight or bias for _, weight, bias in seen[1])
    for (name, p), q in zip(stock.named_parameters(), model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_trainer_trains_adapters_alone_and_goes_on(tmp_path):
    """Of front layers that are frozen the adapters stand still, too."""
    runs = {}
    for name in ("whole", "resumed"):
        run = trainer(
            adapted("lora"), tmp_path, "freeze-once:at=1:share=.5", save_strategy="steps", save_steps=7, label_names=["labels"]
        )  # fmt: skip
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if name == "resumed" else None)
        runs[name] = weights(run.model)
    assert_same(runs["resumed"], runs["whole"])
    begun = weights(adapted("lora"))
    moved = {name for name, value in runs["whole"].items() if not torch.equal(value, begun[name])}
    assert moved
    assert all("lora_" in name or "modules_to_save" in name or name.endswith("bias") for name in moved)

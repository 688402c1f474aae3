"""Models of the package transformers, built from small configurations: nothing is downloaded."""

import copy
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.oracle import assert_same_bits, check, gradients, set_flags
from wuskern.convert import NOT_ASKED

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40)
T5 = dict(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=40, dropout_rate=0.0)
WHISPER = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
    decoder_ffn_dim=24, vocab_size=40, num_mel_bins=8, max_source_positions=10, max_target_positions=12, dropout=0.0,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def tokens() -> Tensor:
    return torch.arange(14).reshape(2, 7) * 3 % 37 + 3


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@dataclass(frozen=True)
class Family:
    """A model by its class and configuration, a batch, how many layers convert, and why others do not."""

    model: str
    config: dict[str, Any]
    batch: dict[str, Any]
    converted: int
    reasons: set[str] = field(default_factory=set)
    tied: bool = False  # the head's weight is the embedding

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        cls = getattr(transformers, self.model)
        return cls(cls.config_class(**self.config)).train()

    def use(self, model: nn.Module, x: Tensor) -> Tensor:
        """The logits; pixels and spectra follow the dtype of x, a number that scales the logits and needs no gradient."""
        torch.manual_seed(1)
        batch = {name: make() for name, make in self.batch.items()}
        batch = {name: v.to(x.dtype) if v.is_floating_point() else v for name, v in batch.items()}
        return model(**batch).logits * x.detach()

    def __str__(self) -> str:
        return self.model


TEXT = dict(input_ids=tokens)
PAIR = dict(input_ids=tokens, decoder_input_ids=tokens)
IMAGE = dict(pixel_values=image)
SPEECH = dict(input_features=lambda: torch.randn(2, 8, 20), decoder_input_ids=tokens)
GPT2 = dict(
    n_embd=16, n_layer=1, n_head=2, vocab_size=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
VIT_PARAMETERS = "cls_token, position_embeddings"
VIT = dict(SMALL, **NO_DROPOUT, image_size=32, patch_size=16)
RESNET = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
CONVNEXT = dict(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])
ONE = torch.ones(())
FAMILIES = [
    Family("BertForMaskedLM", dict(SMALL, **NO_DROPOUT), TEXT, 2 * 6 + 2, tied=True),
    Family("GPT2LMHeadModel", dict(GPT2, n_layer=2), TEXT, 2 * 4 + 1, tied=True),
    Family("LlamaForCausalLM", dict(SMALL, num_key_value_heads=1), TEXT, 2 * 7 + 1),
    Family("T5ForConditionalGeneration", T5, PAIR, 6 + 10 + 1, tied=True),
    Family("WhisperForConditionalGeneration", WHISPER, SPEECH, 6 + 10 + 1, {"there is no skipping Conv1d"}, tied=True),
    Family("ViTForImageClassification", VIT, IMAGE, 2 * 6 + 2, {"ViTEmbeddings computes with its own " + VIT_PARAMETERS}),
    Family("ResNetForImageClassification", RESNET, IMAGE, 1 + 2 + 3 + 1),
    Family("ConvNextForImageClassification", CONVNEXT, IMAGE, 1 + 4 * 3 + 3 + 1),
]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


@each_family
def test_dense_the_bits_of_stock_and_skip_as_right(family):
    check(family.make(), ONE, family.use)


@each_family
def test_what_is_converted_and_what_goes_without_a_gradient(family):
    model = set_flags(wk.convert(family.make()), True)
    found = wk.survey(model)
    assert {f.obstacle for f in found if f.obstacle not in (None, NOT_ASKED)} == family.reasons
    converted = {f.name for f in found if f.obstacle is None}
    assert len(converted) == family.converted
    grads = gradients(model, ONE, family.use)
    without = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.requires_grad and grads[name] is None}
    head = {name for name in converted if family.tied and model.get_submodule(name) is model.get_output_embeddings()}
    assert len(head) == family.tied
    assert without == converted - head  # a tied head's weight still learns as the embedding


@each_family
def test_revert_is_exact(family):
    model = family.make()
    stock = copy.deepcopy(model)
    objects = [(name, id(m), id(p)) for name, m in model.named_modules() for p in m.parameters(recurse=False)]
    wk.convert(model)
    assert list(model.state_dict()) == list(stock.state_dict())
    if family.tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    wk.set_skip(model, True)
    wk.revert(model)
    assert [(name, id(m), id(p)) for name, m in model.named_modules() for p in m.parameters(recurse=False)] == objects
    assert [(type(m), m.__dict__.keys()) for m in model.modules()] == [(type(m), m.__dict__.keys()) for m in stock.modules()]
    assert_same_bits(gradients(model, ONE, family.use), gradients(stock, ONE, family.use))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.model[:4] in ("GPT2", "Llam", "T5Fo", "ViTF")], ids=str)
def test_gradient_checkpointing(family, reentrant):
    def checkpointed(model: nn.Module) -> nn.Module:
        model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
        assert model.is_activation_checkpointing
        return model

    check(family.make(), ONE, family.use, checkpointed)


def test_saved_by_a_converted_model_and_loaded_by_a_stock_one(tmp_path):
    family = FAMILIES[0]
    stock = family.make()
    converted = set_flags(wk.convert(copy.deepcopy(stock)), True)
    converted.save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path).train()
    assert not any(hasattr(m, "skip") for m in loaded.modules())
    assert_same_bits(gradients(loaded, ONE, family.use), gradients(stock, ONE, family.use))
    wk.convert(loaded).load_state_dict(stock.state_dict(), strict=True)

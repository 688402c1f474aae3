"""Adapters of peft are told by where their classes come from; tests/integrations/test_peft.py has the library itself."""

import pytest
import torch.nn as nn

import wuskern as wk
from wuskern.convert import ADAPTER


class LoraLinear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_A = layer, nn.ModuleDict({"default": nn.Linear(4, 2)})


class PeftModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.word_embeddings = model[0]  # what the user's model has as well
        self.base_model, self.prompt_encoder = model, nn.Sequential(nn.Linear(3, 3), nn.PReLU())


LoraLinear.__module__ = "peft.tuners.lora.layer"
PeftModel.__module__ = "peft.peft_model"


def adapted() -> nn.Module:
    return PeftModel(nn.Sequential(nn.Embedding(5, 4), LoraLinear(nn.Linear(4, 4)), nn.Linear(4, 2)))


@pytest.mark.parametrize("embeddings", [False, True])
def test_adapters_are_left_alone_and_named(embeddings):
    model = wk.convert(adapted(), embeddings=embeddings)
    left_alone = [finding.name for finding in wk.survey(model, embeddings=embeddings) if finding.obstacle == ADAPTER]
    assert left_alone == ["base_model.1.lora_A.default", "prompt_encoder.0"]
    converted = [name for name, module in model.named_modules() if hasattr(module, "plan")]
    assert converted == ["word_embeddings"] * embeddings + ["base_model.1.base_layer", "base_model.2"]


def test_an_adapter_is_converted_where_it_is_given_itself():
    model = adapted()
    wk.convert(model.prompt_encoder)
    assert type(model.prompt_encoder[0]) is wk.SkippableLinear
    assert not [finding for finding in wk.survey(model) if finding.name == "prompt_encoder.0" and finding.obstacle]


def test_a_package_with_a_similar_name_is_not_meant():
    class Other(nn.Sequential):
        pass

    Other.__module__ = "peftlike.layers"
    model = wk.convert(Other(nn.Linear(2, 2)))
    assert type(model[0]) is wk.SkippableLinear

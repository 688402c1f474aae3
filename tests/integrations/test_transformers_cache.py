"""An activation cache under transformers' Trainer: the indices come with the batches."""

import pytest
import torch

import wuskern as wk
from tests.integrations.trainer import Words, bert, trainer, weights
from wuskern.policies import ActivationCache, Indexed, SingleShotFreezing

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]


def trained(tmp_path, cached: bool, **arguments) -> tuple[dict[str, torch.Tensor], ActivationCache | None]:
    from transformers import default_data_collator

    model = wk.convert(bert())
    policy = SingleShotFreezing(model, {"input_ids": Words().ids[:2]}, at=0, share=0.5)
    data, cache = Words(), None
    if cached:
        data = Indexed(data)
        cache = ActivationCache(policy, data, collate=default_data_collator, chunk=16)
        cache.listen()
    run = trainer(model, tmp_path, policy, data=data, remove_unused_columns=False, num_train_epochs=2, **arguments)
    run.train()
    return weights(model), cache


@pytest.mark.parametrize("arguments", [{}, dict(bf16=True), dict(gradient_accumulation_steps=2)], ids=str)
def test_training_by_a_cache_is_training_without(arguments, tmp_path):
    plain, _ = trained(tmp_path / "plain", cached=False, **arguments)
    cached, cache = trained(tmp_path / "cached", cached=True, **arguments)
    assert (cache.reason, cache.layers) == (None, cache.freezing.depth)
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=0.05 if arguments.get("bf16") else 1e-3, atol=2e-3)

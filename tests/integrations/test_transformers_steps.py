"""Twenty steps of transformers' Trainer with a policy have the bits of a loop of one's own."""

import pytest
import torch

import wuskern as wk
from tests.integrations.trainer import assert_same, bert, groups, own_loop, trainer, weights

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]

WINDOWS = dict(warmup=0, window=1, threshold=1.0, patience=1)
METHODS = {
    "WUS": lambda model: wk.policies.WUS(model, **WINDOWS),
    "MeProp": lambda model: wk.policies.MeProp(model, ratio=0.3),
    "MEST": lambda model: wk.policies.MEST(model, epochs=4, sparsity=0.5, variant="ems", interval=1),
    "RigL": lambda model: wk.policies.RigL(model, epochs=4, sparsity=0.5, interval=3),
    "both": lambda model: wk.policies.Compose([wk.policies.WUS(model, **WINDOWS), wk.policies.PaCA(model, ratio=0.5, steps=3)]),
}
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_with_trainers_own_optimizer(name, tmp_path):
    model = wk.convert(bert())
    policy = METHODS[name](model)
    optimizer = torch.optim.AdamW(groups(model), lr=0.01, fused=True)
    policy.attach(optimizer)
    own_loop(model, optimizer, policy)

    other = wk.convert(bert())
    trainer(other, tmp_path, METHODS[name](other)).train()
    assert_same(weights(other), weights(model))


@each_method
def test_with_an_optimizer_that_moves_parts(name, tmp_path):
    model = wk.convert(bert())
    policy = METHODS[name](model)
    optimizer = wk.optim.AdamW(groups(model), lr=0.01)
    policy.attach(optimizer)
    norms = own_loop(model, optimizer, policy)

    other = wk.convert(bert())
    run = trainer(
        other, tmp_path, METHODS[name], optimizer_cls_and_kwargs=(wk.optim.AdamW, {"lr": 0.01}), logging_strategy="steps",
        logging_steps=1,
    )  # fmt: skip
    run.train()
    assert_same(weights(other), weights(model))
    assert [log["grad_norm"] for log in run.state.log_history if "grad_norm" in log] == [float(norm) for norm in norms]

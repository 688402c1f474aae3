"""The state of a part in torch's distributed checkpoints, by names of parameters, in one process."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import wuskern as wk
from tests.optim.models import backward, network

PLANS = {"rows": dict(rows=wk.Rows([0, 3])), "columns": dict(columns=wk.Columns([1, 2, 30])), "all": dict(rows=None)}


def planned(plan: dict):
    model = network()
    wk.set_plan(model[2], **({"rows": None} | plan))
    return model, wk.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimizer, seeds) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*is deprecated")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_distributed_checkpoint_continues_bit_for_bit(plan, tmp_path):
    model, optimizer = planned(plan)
    train(model, optimizer, range(2))
    saved = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    other, resumed = planned(plan)
    into = {"model": get_model_state_dict(other), "optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(into, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, into["model"])
    set_optimizer_state_dict(other, resumed, into["optimizer"])
    assert resumed.state[other[2].weight]["exp_avg"].shape == optimizer.state[model[2].weight]["exp_avg"].shape
    train(model, optimizer, range(2, 4))
    train(other, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

"""What ``wk.summary`` counts, worked by hand: ties once, what trains now, and its few lines."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk


class Net(nn.Module):
    """An embedding tied to a head, two layers, a convolution, a norm that is frozen."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.conv = nn.Conv2d(4, 8, 3, groups=2)  # 8 * 2 * 9 = 144
        self.fc = nn.Linear(8, 6)  # 48
        self.mix = nn.Bilinear(2, 2, 3)  # 12, which nobody converts
        self.norm = nn.LayerNorm(4).requires_grad_(False)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight


TOTAL = 40 + 144 + 8 + 48 + 6 + 12 + 3 + 8


def test_ties_count_once_and_what_is_frozen_is_said():
    said = wk.summary(Net())
    assert (said.total, said.trainable, said.frozen, said.train_now) == (TOTAL, TOTAL - 8, 8, TOTAL - 8)
    assert (said.layers, said.covered, said.embeddings) == (0, 0, 40)
    assert str(said).splitlines() == [
        "parameters  269, 8 (3.0%) of them frozen (requires_grad is False)",
        "train now   261 (97.0%)",
        "converted   none: see wuskern.convert",
        "embeddings  40 (14.9%)",
    ]
    assert repr(said) == str(said)


def test_a_converted_model_says_what_its_layers_cover():
    said = wk.summary(wk.convert(Net()))
    assert (said.layers, said.covered, said.embeddings) == (3, 144 + 48 + 40, 0)  # the table is the head's
    assert str(said).splitlines()[2] == "converted   232 (86.2%) in the weights of 3 layers: all dense"


def test_what_trains_now_by_the_plans():
    model = wk.convert(Net())
    wk.set_skip(model, True)
    said = wk.summary(model)
    assert (said.skipped, said.train_now) == (192, TOTAL - 8 - 192)  # not the head's, which trains as a table
    wk.set_skip(model, False)
    model.conv.rows = wk.TopK(ratio=0.5)
    model.fc.rows, model.fc.columns = wk.Rows([0, 3]), wk.TopColumns(k=4)
    model.head.tokens = wk.Tokens(k=1)
    said = wk.summary(model)
    assert (said.parts, said.parts_train) == (192, 72 + 2 * 4)
    assert said.train_now == TOTAL - 8 - 192 + 80
    line = (
        "converted   232 (86.2%) in the weights of 3 layers: 80 of 192 train (rows of 2 layers and columns of 1 layer), chosen"
    )
    assert str(said).splitlines()[2] == f"{line} tokens in 1 layer"
    model.fc.weight.requires_grad_(False)
    assert wk.summary(model).parts_train == 72
    assert wk.summary(model).frozen == 8 + 48


@pytest.mark.parametrize("rows", [wk.PerExample(k=1), wk.TopK(k=6), wk.Rows(range(6))])
def test_rows_that_leave_nothing_out_for_sure_train_whole(rows):
    model = wk.convert(nn.Sequential(nn.Linear(8, 6)))
    model[0].rows = rows
    assert wk.summary(model).train_now == 48 + 6


def test_the_gradients_of_a_step_are_those_that_are_counted():
    """Against a real backward: as many elements that are not zero."""
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)))
    model[0].rows = wk.TopK(ratio=0.3)
    model[2].columns = wk.Columns([1, 2, 7])
    model[4].skip = True
    model(torch.randn(20, 12)).square().sum().backward()
    counted = sum(int(p.grad.count_nonzero()) for p in model.parameters() if p.grad is not None)
    assert wk.summary(model).train_now == counted == 3 * 12 + 10 + 8 * 3 + 8 + 3


def test_a_frozen_prefix_counts_as_the_policys():
    model = wk.convert(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))
    policy = wk.policies.ProgressiveFreezing(model, torch.randn(3, 4), start=0, end=1)
    policy.after_epoch()
    said = wk.summary(model)
    assert (said.frozen_by_policy, said.train_now) == (25 + 10, 12)
    assert "35 frozen by a policy" in str(said)
    policy.release()
    assert wk.summary(model).frozen_by_policy == 0


def test_what_several_decide_about_counts_once():
    model = wk.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)))
    model[3].weight = model[2].weight
    model[2].skip = True
    assert wk.summary(model).skipped == 0  # the other one trains it
    model[3].skip = True
    assert (wk.summary(model).skipped, wk.summary(model).total) == (16, 20 + 20)
    policy = wk.policies.ProgressiveFreezing(model, torch.randn(3, 4), start=0, end=1)
    policy.after_epoch()
    model[0].skip = True
    assert (wk.summary(model).skipped, wk.summary(model).frozen_by_policy) == (16, 20)


def test_embeddings_and_their_tokens_and_compiled_models():
    model = wk.convert(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)), embeddings=True)
    model[0].rows = wk.Rows([1, 2])
    said = wk.summary(model)
    assert (said.covered, said.embeddings, said.train_now, said.layers) == (12, 40, 8 + 15, 2)
    assert wk.summary(torch.compile(model, backend="eager")) == said
    assert wk.summary(copy.deepcopy(model)) == said


def test_weights_that_are_computed_from_others_count_as_such():
    model = wk.convert(nn.Sequential(nn.Linear(4, 3, bias=False)))
    nn.utils.parametrizations.weight_norm(model[0])  # 3 and 12
    model[0].skip = True
    said = wk.summary(model)
    assert (said.total, said.covered, said.skipped, said.train_now) == (15, 15, 15, 0)


def test_what_has_no_size_and_what_is_no_module_are_refused():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        wk.summary(1)
    with pytest.raises(ValueError, match=r"model: expected parameters with sizes, got a lazy 1.weight: run the model once"):
        wk.summary(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))

"""The compact gradient, torch's hybrid sparse tensor in ``weight.grad``: what it holds, who sees it, where it goes."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

import wuskern as wk
from tests.sparse import dense_form, each_choice, each_layer, input_of, layer_of, loss_of
from wuskern import sparse_grad
from wuskern.sparse_grad import RowGrad, to_rows

# ---- what it is -----------------------------------------------------------------------------------------------------


@each_choice
@each_layer
def test_it_is_torchs_hybrid_tensor_of_the_chosen_rows(kind, choice):
    layer = layer_of(kind, choice)
    loss_of(layer, input_of(kind)).backward()
    grad, expected = layer.weight.grad, dense_form(kind, choice)
    k = layer.rows.count(12)
    assert grad.layout is torch.sparse_coo
    assert (grad.sparse_dim(), grad.dense_dim()) == (1, layer.weight.ndim - 1)
    assert grad._indices().tolist() == [expected.flatten(1).any(1).nonzero().flatten().tolist()]
    assert grad._values().shape == (k, *layer.weight.shape[1:])
    assert torch.equal(grad.to_dense(), expected)
    assert (grad.dtype, grad.requires_grad) == (layer.weight.dtype, False)
    assert not layer.bias.grad.is_sparse


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10's own
@pytest.mark.parametrize("scope", ["weight", "both"])
def test_memory_of_the_weights_size_is_never_taken(scope):
    layer = wk.SkippableLinear(300, 1000)
    layer.rows = wk.TopK(k=3, scope=scope, sparse=True)
    y = layer(torch.randn(2, 300)).sum()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        y.backward()
    assert layer.weight.grad._values().untyped_storage().nbytes() == 3 * 300 * 4
    assert 0 < max(e.self_cpu_memory_usage for e in events.events()) < 1000 * 300 * 4 / 10


def test_a_batch_of_nothing_has_zeros_in_as_many_rows():
    layer = layer_of("linear")
    layer(torch.zeros(0, 6)).sum().backward()
    assert (layer.weight.grad._nnz(), layer.weight.grad._values().count_nonzero()) == (2, 0)


def test_rows_and_values_are_taken_from_it_without_a_copy():
    """AccumulateGrad drops the flag that says so; the indices themselves are known."""
    layer = layer_of("linear", "Rows")
    for _ in range(2):
        loss_of(layer, input_of("linear")).backward()
    grad = layer.weight.grad
    assert not grad.is_coalesced()
    found = to_rows(grad)
    assert found.values.data_ptr() == grad._values().data_ptr()
    assert found.rows.tolist() == [1, 4, 7]
    assert torch.equal(found.dense(12), 2 * dense_form("linear", "Rows"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_one_that_is_not_coalesced(dtype):
    values = torch.tensor([[1.0, 2], [4, 8], [16, 32], [64, 128]], dtype=dtype)
    found = to_rows(torch.sparse_coo_tensor([[5, 0, 5, 2]], values, (6, 2), check_invariants=False))
    assert found.rows.tolist() == [0, 2, 5]
    assert found.values.tolist() == [[4, 8], [64, 128], [17, 34]]
    assert found.values.dtype == dtype


def test_indices_that_are_gone_are_forgotten(monkeypatch):
    """And no others, however many there are."""
    monkeypatch.setattr(sparse_grad, "MOST_KNOWN", 8)
    monkeypatch.setattr(sparse_grad, "_ascending", {})  # other tests may keep gradients
    weight = Parameter(torch.zeros(9, 2))

    def made(row: int) -> Tensor:
        return sparse_grad.to_sparse(weight, RowGrad(torch.tensor([row, 8]), torch.ones(2, 2)))

    kept = [made(row) for row in range(4)]
    for row in range(20):
        made(row % 8)
    assert len(sparse_grad._ascending) <= 8
    for grad in kept:
        without_flag = torch.sparse_coo_tensor(grad._indices(), grad._values(), grad.shape, check_invariants=False)
        assert to_rows(without_flag).values.data_ptr() == grad._values().data_ptr()


# ---- hooks ----------------------------------------------------------------------------------------------------------


@each_choice
@each_layer
def test_a_hook_sees_the_gradient_and_what_it_returns_is_used(kind, choice):
    layer, seen = layer_of(kind, choice), []
    layer.weight.register_hook(lambda grad: seen.append(grad) or grad * 0.5)
    loss_of(layer, input_of(kind)).backward()
    expected = dense_form(kind, choice)
    assert [grad.layout for grad in seen] == [torch.sparse_coo]
    assert torch.equal(seen[0].to_dense(), expected)
    assert torch.equal(layer.weight.grad.to_dense(), expected / 2)


@each_choice
def test_hooks_see_each_micro_batch_alone_and_afterwards_the_sum(choice):
    layer, seen, sums = layer_of("linear", choice), [], []
    layer.weight.register_hook(lambda grad: seen.append(grad.to_dense()))
    layer.weight.register_post_accumulate_grad_hook(lambda weight: sums.append(weight.grad.to_dense()))
    for seed in range(3):
        loss_of(layer, input_of("linear", seed)).backward()
    expected = [dense_form("linear", choice, seed) for seed in range(3)]
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(sums, [expected[0], expected[0] + expected[1], sum(expected)])
    assert layer.weight.grad.is_sparse


@each_choice
def test_hooks_that_came_or_went_between_micro_batches(choice):
    layer, seen = layer_of("linear", choice), []
    for seed in range(4):
        handle = layer.weight.register_hook(lambda grad: seen.append(grad.to_dense())) if seed % 2 else None
        loss_of(layer, input_of("linear", seed)).backward()
        if handle:
            handle.remove()
    expected = [dense_form("linear", choice, seed) for seed in range(4)]
    torch.testing.assert_close(seen, expected[1::2])
    torch.testing.assert_close(layer.weight.grad.to_dense(), sum(expected))


def test_an_optimizer_inside_of_backward():
    """Each weight moves as soon as its gradient is there, which is then gone."""
    layer, other = layer_of("linear"), layer_of("linear", sparse=False)
    for each in (layer, other):
        optimizer = wk.optim.SGD([each.weight], lr=0.1)

        def step(weight: Parameter, optimizer=optimizer) -> None:
            optimizer.step()
            weight.grad = None

        each.weight.register_post_accumulate_grad_hook(step)
        for seed in range(3):
            loss_of(each, input_of("linear", seed)).backward()
        assert each.weight.grad is None
    assert not torch.equal(layer.weight, layer_of("linear").weight)
    torch.testing.assert_close(layer.weight, other.weight)


def test_a_hook_for_several_gradients():
    layer, seen = layer_of("linear"), []
    torch.autograd.graph.register_multi_grad_hook([layer.weight, layer.bias], lambda grads: seen.append(grads))
    for seed in range(2):
        loss_of(layer, input_of("linear", seed)).backward()
    for (of_weight, of_bias), seed in zip(seen, range(2), strict=True):
        torch.testing.assert_close(of_weight.to_dense(), dense_form("linear", seed=seed))
        assert not of_bias.is_sparse


# ---- it travels -----------------------------------------------------------------------------------------------------


def test_it_is_saved_and_loaded_with_its_parameters():
    layer = layer_of("linear")
    loss_of(layer, input_of("linear")).backward()
    file = io.BytesIO()
    torch.save({"held": layer.state_dict(keep_vars=True), "grads": [p.grad for p in layer.parameters()]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["held"]["weight"], layer.weight)
    assert loaded["grads"][0].is_sparse
    layer.weight.grad = loaded["grads"][0]
    loss_of(layer, input_of("linear")).backward()
    torch.testing.assert_close(layer.weight.grad.to_dense(), 2 * dense_form("linear"))
    assert layer.weight.grad._nnz() == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t)), Tensor.clone])
def test_it_is_copied(copied):
    layer = layer_of("linear")
    loss_of(layer, input_of("linear")).backward()
    other = copied(layer.weight.grad)
    assert other.is_sparse
    assert torch.equal(to_rows(other).dense(12), dense_form("linear"))


def test_a_copy_of_a_model_with_gradients_trains_on():
    """Without them, as torch copies parameters."""
    layer = layer_of("linear")
    loss_of(layer, input_of("linear")).backward()
    other = copy.deepcopy(layer)
    assert other.weight.grad is None
    loss_of(other, input_of("linear")).backward()
    assert torch.equal(other.weight.grad.to_dense(), layer.weight.grad.to_dense())
    loss_of(other, input_of("linear")).backward()
    assert torch.equal(layer.weight.grad.to_dense(), dense_form("linear"))


@each_layer
def test_it_goes_with_a_model_to_another_dtype(kind):
    layer = layer_of(kind)
    loss_of(layer, input_of(kind)).backward()
    expected = dense_form(kind).double()
    layer.double()
    assert layer.weight.grad.dtype == torch.float64
    torch.testing.assert_close(layer.weight.grad.to_dense(), expected)
    loss_of(layer, input_of(kind).double()).backward()
    assert layer.weight.grad.is_sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), 2 * expected, rtol=1e-4, atol=1e-4)

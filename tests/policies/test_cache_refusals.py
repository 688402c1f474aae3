"""Where an activation cache cannot be right it keeps nothing, says why, and the whole model runs; or it raises."""

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.policies import ActivationCache, SingleShotFreezing

N, INDEX = 20, torch.tensor([3, 17, 0, 8])
SAMPLES = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and a head; subclasses do something in between that a cache cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.steps = 0

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.second(self.between(self.first(x)))))


class Dropped(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Centred(Net):
    """By the mean of the batch."""

    def between(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(Net):
    def between(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x * (1 + 1e-9 * self.steps)


class Turned(Net):
    """Samples are not in dimension 0 of what the frozen module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Transposed()

    def between(self, x: Tensor) -> Tensor:
        return x.t()


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).t()


class Wrapped:
    """A result of a class of its own."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Opaque(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first = Wrapping()

    def between(self, x: Any) -> Tensor:
        return x.x


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Wrapped:
        return Wrapped(self.layer(x))


class Returning(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), Wrapped(x)


class Sharing(Net):
    """A parameter of the model itself is used in front of the layers that train, and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.scale[:2]


REASONS = {
    Dropped: "the output of second is random",
    Centred: "the output of second depends on which samples are computed together",
    Turned: "the output of first has no samples in dimension 0: (6, 4) for 4 of them",
    Opaque: "the output of first has a Wrapped in it",
    Returning: "the model gives a Wrapped in its output",
    Sharing: "scale of a Sharing is used behind the frozen part, too, and trains",
}


def cached(make: Any, samples: Any = SAMPLES, **arguments: Any) -> tuple[nn.Module, ActivationCache]:
    torch.manual_seed(0)
    model = wk.convert(make()).train()
    return model, ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=0.7), samples, **arguments)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("make", REASONS)
def test_the_whole_model_runs_and_the_reason_is_said(make, caplog):
    model, cache = cached(make)
    torch.manual_seed(1)
    expected = first(model(SAMPLES[INDEX]))
    for _ in range(2):
        torch.manual_seed(1)
        assert torch.equal(first(cache(INDEX)), expected)
        assert (cache.reason, cache.nbytes, cache.layers) == (REASONS[make], 0, 0)
    assert caplog.messages == [f"cache: the whole model runs, nothing is kept: {REASONS[make]}"]


def test_a_state_that_changes_in_each_step_is_given_up():
    _, cache = cached(Counting)
    for _ in range(5):
        cache(INDEX)
    assert cache.reason == "the frozen part, or a module around it, changes in each step"
    assert cache.nbytes == 0


def test_what_is_refused_is_tried_again_with_another_depth():
    model, cache = cached(Dropped)
    cache(INDEX)
    cache.freezing.prefix.set(1)
    expected = first(model.eval()(SAMPLES[INDEX]))
    model.train()
    cache(INDEX)
    assert (cache.reason, cache.layers) == (None, 1)  # the randomness comes behind the first layer
    assert torch.equal(first(model.eval()(SAMPLES[INDEX])), expected)


class Augmented:
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Tensor) -> Tensor:
        return SAMPLES[index] + torch.randn(len(index), 6)


def test_augmented_samples_are_refused():
    _, cache = cached(Net, Augmented())
    cache(INDEX)
    assert cache.reason == "the samples are not the same each time (augmented?)"


class Ragged:
    """Batches as long as their longest sample."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Tensor) -> Tensor:
        return SAMPLES[index].unsqueeze(1).repeat(1, 1 + int(index.max()) // 8, 1)


def test_samples_of_several_lengths_are_refused():
    _, cache = cached(Net, Ragged(), chunk=4)
    cache(torch.tensor([0, 1]))
    assert cache.reason is None
    cache(torch.tensor([0, 19]))
    assert cache.reason.startswith("the output of first is (torch.float32, (3, 6)) for some samples")


def test_a_reader_that_the_trial_did_not_show_raises():
    """It reads an output that nothing read before, and that was not kept."""

    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.late = []

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            z = self.head(torch.tanh(self.second(y)))
            return z + y.sum() if self.training and self.late else z

    model, cache = cached(Late)
    cache(INDEX)
    assert cache.reason is None
    model.late.append(1)  # in evaluation, in which a prefix is tried, nothing reads it still
    with pytest.raises(RuntimeError, match="expected nothing behind the frozen part to read the output of first"):
        cache(INDEX)


def test_a_parent_that_changes_is_seen():
    class Shifted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.zeros(6))

        def between(self, x: Tensor) -> Tensor:
            return x + self.shift

    model, cache = cached(Shifted)
    cache(INDEX)
    model.shift.fill_(2.0)
    torch.testing.assert_close(cache(INDEX), model(SAMPLES[INDEX]))
    assert cache.reason is None


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([1, 2], TypeError, "index: expected a vector of int64, got list"),
        (torch.tensor([0.5]), TypeError, r"index: expected a vector of int64, got torch.float32 \[1\]"),
        (torch.tensor([0, 20]), ValueError, "index: expected numbers from 0 to 19, got 0 to 20"),
        (torch.tensor([-1]), ValueError, "index: expected numbers from 0 to 19, got -1 to -1"),
    ],
)
def test_a_bad_index(index, error, message):
    model, cache = cached(Net)
    with pytest.raises(error, match=message), cache.at(index):
        model(SAMPLES[INDEX])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(samples=3), TypeError, "samples: expected a tensor, or what has a length and can be indexed, got int"),
        (dict(samples={"a": SAMPLES, "b": SAMPLES[:3]}), ValueError, "expected inputs of one length, got {'a': 20, 'b': 3}"),
        (dict(dtype=torch.int8), TypeError, "dtype: expected a floating-point torch.dtype or None, got torch.int8"),
        (dict(folder="no/such/folder"), ValueError, "folder: expected a folder, got 'no/such/folder'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        cached(Net, **arguments)

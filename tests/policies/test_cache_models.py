"""The activation cache on models of any form: what it gives is what the model computes, and so are the gradients."""

import threading
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.policies import ActivationCache, Freezing, Indexed, SingleShotFreezing

N, INDEX = 22, torch.tensor([3, 21, 0, 8])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A residual block that takes a mask, and gives a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.a(x)) * mask.unsqueeze(-1)
        return {"x": x + self.b(hidden), "extra": (hidden, None, 3)}


class Masked(nn.Module):
    """Three blocks in a parent that adds a parameter of its own, reads a buffer, and hands a mask around."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.position, self.blocks = nn.Parameter(torch.ones(1, 5, 6)), nn.ModuleList(Block() for _ in range(blocks))
        self.register_buffer("scale", torch.tensor(2.0))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * self.scale + self.position
        for block in self.blocks:
            x = block(x, mask)["x"]
        return self.head(x.mean(1))


def masked() -> tuple[nn.Module, dict[str, Tensor]]:
    return Masked(), {"x": numbers(5, 6), "mask": (numbers(5, seed=1) > 0).float()}


class Skips(nn.Module):
    """Convolutions whose outputs are read far behind them, as in a U-Net, and written to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = self.norm(self.down(x))
        deep = F.relu_(self.deep(F.max_pool2d(early, 2)))
        y = self.up(torch.cat([early, F.interpolate(deep, scale_factor=2)], 1))
        return self.out(F.relu(y))


def skips() -> tuple[nn.Module, dict[str, Tensor]]:
    return Skips(), {"x": numbers(2, 4, 4)}


class Twice(nn.Module):
    """One module that runs twice in front of what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.middle, self.head = nn.Linear(4, 4), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.cat([self.inner(x).sin(), self.inner(2 * x).cos()], 1)).relu())


def twice() -> tuple[nn.Module, dict[str, Tensor]]:
    return Twice(), {"x": numbers(4)}


def tokens(make: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    pytest.importorskip("transformers")
    mask = torch.ones(N, 7, dtype=torch.long)
    mask[::3, 5:] = 0
    return make(), {"input_ids": numbers(7).mul(9).abs().long() % 19 + 1, "attention_mask": mask}


SMALL = dict(vocab_size=20, initializer_range=0.5)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
    return BertForSequenceClassification(BertConfig(**SMALL, **sizes))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = dict(n_embd=8, n_layer=3, n_head=2, n_positions=8, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    return GPT2ForSequenceClassification(GPT2Config(**SMALL, **sizes, use_cache=False))


def images(make: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    pytest.importorskip("transformers")
    return make(), {"pixel_values": numbers(3, 16, 16)}


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4)
    return ViTForImageClassification(ViTConfig(**sizes, initializer_range=0.5))


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 2], layer_type="basic"))


MAKERS = {
    "masked": masked, "skips": skips, "twice": twice, "bert": lambda: tokens(bert), "gpt2": lambda: tokens(gpt2),
    "vit": lambda: images(vit), "resnet": lambda: images(resnet),
}  # fmt: skip


def frozen(name: str, share: float = 0.6) -> tuple[nn.Module, Freezing, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, samples = MAKERS[name]()
    wk.convert(model).train()
    return model, SingleShotFreezing(model, {k: v[:2] for k, v in samples.items()}, at=0, share=share), samples


def loss(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.logits).square().sum()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("share", [0.34, 0.6])
def test_output_and_gradients_are_those_of_the_model(name, share):
    model, policy, samples = frozen(name, share)
    cache = ActivationCache(policy, samples, chunk=8)
    found = []
    for call in (lambda: model(**{k: v[INDEX] for k, v in samples.items()}), lambda: cache(INDEX), lambda: cache(INDEX)):
        model.zero_grad()
        torch.manual_seed(1)
        value = loss(call())
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert (cache.reason, cache.layers > 0, cache.nbytes > 0) == (None, True, True)
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # of chunks of eight samples, or of four
        assert torch.equal(b, c)


def test_only_what_is_read_behind_the_frozen_part_is_kept():
    """Of two frozen blocks the last one's ``x``, [5, 6], and of the third block the output of a layer."""
    _, policy, samples = frozen("masked", 0.6)  # four of seven layers: two blocks
    cache = ActivationCache(policy, samples)
    cache(INDEX)
    assert (policy.depth, cache.layers, cache.nbytes) == (4, 4, N * 5 * 6 * 4)


def test_what_is_read_far_behind_is_kept_as_it_was_read():
    """The norm's output goes into a concatenation; the second convolution's is written to in place by then."""
    _, policy, samples = frozen("skips", 0.5)
    cache = ActivationCache(policy, samples)
    cache(INDEX)
    assert (cache.layers, cache.nbytes) == (2, N * 4 * (4 * 4 + 2 * 2) * 4)


@pytest.mark.parametrize("name", ["masked", "skips"])
def test_frozen_modules_do_not_run_again(name):
    model, policy, samples = frozen(name)
    cache = ActivationCache(policy, samples)
    cache(torch.arange(N))
    layer = next(iter(policy.layers.values()))

    def fail(*_: Any) -> None:
        raise AssertionError("it ran")

    layer.__dict__["forward"].run = fail
    cache(INDEX)
    model.eval()
    with pytest.raises(AssertionError, match="it ran"):
        cache(INDEX)


def test_values_can_be_kept_in_half_precision():
    _, policy, samples = frozen("masked")
    exact, half = ActivationCache(policy, samples), ActivationCache(policy, samples, dtype=torch.bfloat16)
    torch.testing.assert_close(half(INDEX), exact(INDEX), rtol=0.02, atol=0.02)
    assert half(INDEX).dtype is torch.float32
    assert 2 * half.nbytes == exact.nbytes


@pytest.mark.parametrize("name", ["masked", "resnet"])
def test_values_can_lie_in_a_file_that_leaves_nothing_behind(name, tmp_path):
    model, policy, samples = frozen(name)
    model.to(memory_format=torch.channels_last)
    memory, file = ActivationCache(policy, samples), ActivationCache(policy, samples, folder=tmp_path)
    for _ in range(2):
        assert torch.equal(loss(memory(INDEX)), loss(file(INDEX)))
    assert file.nbytes == memory.nbytes
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_single_samples_is_collated():
    _, policy, samples = frozen("masked")
    dataset = [{name: values[i] for name, values in samples.items()} for i in range(N)]
    cache = ActivationCache(policy, dataset, collate=torch.utils.data.default_collate)
    assert torch.equal(cache(INDEX), ActivationCache(policy, samples)(INDEX))
    assert cache.nbytes > 0


# ---- who calls the model itself -------------------------------------------------------------------------------------


def test_a_block_says_which_samples_come():
    model, policy, samples = frozen("masked")
    cache = ActivationCache(policy, samples)
    expected = cache(INDEX)
    batch = {name: values[INDEX] for name, values in samples.items()}
    with cache.at(INDEX):
        assert torch.equal(model(**batch), expected)
        assert torch.equal(model(batch["x"], batch["mask"]), expected)  # again, and by position


@pytest.mark.parametrize("change", ["another sample", "a number", "the mask", "a length"])
def test_other_inputs_than_the_samples_raise(change):
    model, policy, samples = frozen("masked")
    cache = ActivationCache(policy, samples)
    batch = {name: values[INDEX] for name, values in samples.items()}
    if change == "another sample":
        batch["x"][1] = samples["x"][2]
    elif change == "a number":
        batch["x"][2, 3, 4] += 1e-6
    elif change == "the mask":
        batch["mask"][0, 1] = 1 - batch["mask"][0, 1]
    else:
        batch = {name: torch.cat([values, values[:, -1:]], 1) for name, values in batch.items()}
    with cache.at(INDEX), pytest.raises(ValueError, match="inputs: expected x, mask to be as in the samples"):
        model(**batch)


def test_the_index_comes_with_the_batch():
    """As a trainer calls the model: a loader of samples that say which they are."""
    model, policy, samples = frozen("masked")
    dataset = Indexed([{name: values[i] for name, values in samples.items()} for i in range(N)])
    cache = ActivationCache(policy, dataset, collate=torch.utils.data.default_collate)
    cache.listen()
    for batch in torch.utils.data.DataLoader(dataset, batch_size=5):
        plain = {name: value for name, value in batch.items() if name != "sample_index"}
        torch.testing.assert_close(model(**batch), model(**plain), rtol=1e-4, atol=1e-5)
    assert cache.nbytes > 0
    model.eval()
    assert torch.equal(model(**batch), model(**plain))
    with pytest.raises(ValueError, match="key: expected to be told once"):
        cache.listen()


def test_calls_of_two_threads_end_in_their_own():
    """One call begins and ends while the other one runs; neither leaves anything behind in its thread."""
    model, policy, samples = frozen("masked")
    cache = ActivationCache(policy, samples)
    cache.listen()
    batch = {name: values[INDEX] for name, values in samples.items()}
    expected = model(**batch)
    model(**batch, sample_index=INDEX)  # so that the values are there
    inside, done = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        if threading.current_thread() is first:
            inside.set()
            done.wait(60)

    model.head.register_forward_pre_hook(wait)
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append((model(**batch, sample_index=INDEX), policy.prefix.calls.outputs)))
    first.start()
    inside.wait(60)
    model(**batch, sample_index=INDEX)
    assert policy.prefix.calls.outputs is None
    done.set()
    first.join()
    torch.testing.assert_close(found[0][0], expected, rtol=1e-4, atol=1e-5)
    assert found[0][1] is None


def test_a_tuple_gets_its_index_last():
    assert Indexed([("a", 1), ("b", 0)])[1] == ("b", 0, 1)
    with pytest.raises(TypeError, match="dataset: expected samples that are mappings or tuples, got int"):
        Indexed([5])[0]

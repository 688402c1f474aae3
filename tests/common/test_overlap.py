"""Blocks that set something for their length, entered and left in any order: by threads, by tasks, by exit stacks."""

import asyncio
import copy
import threading

import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st

import wuskern as wk
from wuskern.kernels import backends
from wuskern.kernels.triton import tuning


def model():
    return wk.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


NET = model()
NAMES = st.sampled_from(backends.NAMES)
SETTINGS = {
    "skipping": (lambda value: wk.skipping(NET, value), lambda: NET[0].skip, st.booleans(), False),
    "backend": (wk.backend, lambda: backends._wish, NAMES, None),
    "autotune": (wk.autotune, lambda: tuning._on, st.booleans(), False),
}


@pytest.mark.parametrize("setting", SETTINGS)
@given(data=st.data())
def test_the_block_entered_last_counts_in_any_order_of_leaving(setting, data):
    make, read, values, outside = SETTINGS[setting]
    inside = []
    for _ in range(data.draw(st.integers(0, 12))):
        if inside and data.draw(st.booleans()):
            inside.pop(data.draw(st.integers(0, len(inside) - 1)))[0].__exit__(None, None, None)
        else:
            value = data.draw(values)
            block = make(value)
            block.__enter__()
            inside.append((block, value))
        assert read() == (inside[-1][1] if inside else outside)
    for block, _ in inside:
        block.__exit__(None, None, None)
    assert read() == outside


def test_two_tasks_that_overlap():
    net, seen = model(), []

    async def task(before, length):
        await asyncio.sleep(before)
        with wk.skipping(net):
            await asyncio.sleep(length)
            seen.append([layer.skip for layer in net])

    async def both():
        await asyncio.gather(task(0, 0.02), task(0.01, 0.03))

    asyncio.run(both())
    assert seen == [[True, True], [True, True]]
    assert [layer.skip for layer in net] == [False, False]


def test_many_threads():
    net, wrong = model(), []
    net[1].skip = True

    def enter_and_leave():
        for _ in range(50):
            with wk.skipping(net), wk.backend("reference"):
                if not net[0].skip or backends._wish != "reference":
                    wrong.append("inside")

    threads = [threading.Thread(target=enter_and_leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert ([layer.skip for layer in net], backends._wish) == ([False, True], None)


def test_an_error_inside_of_a_block_leaves_it():
    net = model()
    with pytest.raises(KeyError), wk.skipping(net):
        raise KeyError
    assert not net[0].skip


def test_a_wrong_flag_enters_no_block():
    net = model()
    with pytest.raises(TypeError, match="skip: expected True or False, got 'no'"), wk.skipping(net, "no"):
        pass
    assert not net[0].skip


def test_a_model_reverted_inside_of_a_block_has_no_flag():
    net = model()
    with wk.skipping(net):
        wk.revert(net)
    assert "skip" not in vars(net[0])
    with wk.skipping(wk.convert(net)):
        assert net[0].skip
    assert not net[0].skip


def test_a_copy_made_inside_of_a_block_is_a_model_of_its_own():
    net = model()
    with wk.skipping(net):
        other = copy.deepcopy(net)
        with wk.skipping(other, False):
            assert (net[0].skip, other[0].skip) == (True, False)
        assert other[0].skip
    assert not net[0].skip


def test_a_compiled_model_follows():
    net = model()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = torch.randn(2, 4)
    for skip in (False, True, False):
        net.zero_grad()
        with wk.skipping(net, skip):
            compiled(x).sum().backward()
        assert (net[0].weight.grad is None) is skip

"""pytest's plugin where a stand-in is the GPU: benchmarks take small cases, and what only a GPU can do is skipped, with a
reason."""

import re

import pytest
import torch

from wuskern.bench import ceilings

ONLY_A_GPU = {  # what the beginnings of tests' names match -> what they ask for
    r"test_every_way_is_right\[cuda-native-.*bfloat16": "sums in float32, where the CPU's library rounds to bfloat16",
    r"test_every_op_is_right\[.*bfloat16-rowsparse_wgrad_conv2d": "sums in float32, where the CPU's library rounds to bfloat16",
    r"(test_every_way_is_right\[cuda|test_cases\[)-?triton-.*bfloat16": "bfloat16, which Triton's interpreter rounds otherwise",
    r"test_tf32_is_what_torch_allows_each_library": "TF32",
    r"test_a_gpu_is_timed_by_its_events": "sums in the order of a GPU's library",
    r"test_on_a_gpu_two_of_four_are_packed_too": "2:4 by cuSPARSELt",
}
SMALL = {"CONVS": "TINY_CONVS", "LINEARS": "TINY_LINEARS", "GRADIENTS": "TINY_GRADIENTS", "NETWORKS": "TINY", "CASES": "TINY"}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    module = metafunc.module
    for large, small in SMALL.items():
        if module.__name__.startswith("bench.gpu.") and hasattr(module, large):
            setattr(module, large, getattr(module, small))


def pytest_collection_modifyitems(items):
    for item in items:
        for name, wanted in ONLY_A_GPU.items():
            if re.match(name, item.name):
                item.add_marker(pytest.mark.skip(reason=f"a stand-in has no {wanted}"))


@pytest.fixture(autouse=True)
def _fast_enough(request, monkeypatch):
    """Benchmarks flush, sleep and multiply no more than a CPU does in no time."""
    if request.module.__name__.startswith("bench.gpu."):
        monkeypatch.setattr("wuskern.bench.clocks.FLUSH_BYTES", 2**16)
        monkeypatch.setattr("wuskern.bench.clocks.LONGEST_SLEEP", 1e-3)
        monkeypatch.setitem(ceilings.SIDE, "cuda", 64)
    if request.module.__name__ == "bench.gpu.test_steps":  # bfloat16 takes minutes on a CPU without instructions for it
        monkeypatch.setattr(torch, "bfloat16", torch.float32)

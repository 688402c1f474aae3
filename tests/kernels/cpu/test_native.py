"""What native.py composes on the CPU, beyond the ops that use it: products, choices, and the compiled parts by themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.accuracy import assert_as_right_as_stock
from tests.cases import MEMORY_FORMATS, Conv
from tests.rowsparse import DTYPES, LARGER, assert_exact, conv_tensors, need_library, stock_dgrad
from wuskern import ops
from wuskern.kernels.cpu import conv2d, paths, product
from wuskern.kernels.problem import Problem


@pytest.mark.parametrize("path", product.PRODUCTS)
def test_every_product(path):
    need_library()
    if path == "onednn" and product.onednn_obstacle():
        pytest.skip(product.onednn_obstacle())
    deep = torch.randn(3000, 100).t(), torch.randn(3000, 90).t()
    for a, b in ((torch.randn(9, 70), torch.randn(5, 70)), (torch.randn(70, 9).t(), torch.randn(70, 5).t()), deep):
        exact, magnitudes = a.double() @ b.double().t(), a.double().abs() @ b.double().abs().t()
        assert_as_right_as_stock(product.PRODUCTS[path](a, b), a @ b.t(), exact, magnitudes)


def test_large_results_are_written_into_memory_of_ours(monkeypatch):
    need_library()
    monkeypatch.setattr(paths, "MAPPED_BYTES", 64)
    a, b = torch.randn(9, 70, requires_grad=True), torch.randn(5, 70)
    torch.testing.assert_close(product.PRODUCTS["mm"](a, b), (a @ b.t()).detach())


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_same_bits_whatever_the_number_of_threads(number):
    """Of our own kernels; a library's answer may depend on it."""
    need_library()
    t = conv_tensors(LARGER[2], torch.float32, "NCHW")
    problem, before = t.wgrad_problem, torch.get_num_threads()
    first = conv2d.WGRAD["direct"](t.gathered(), t.x, problem)
    try:
        torch.set_num_threads(int(number))
        assert torch.equal(conv2d.WGRAD["direct"](t.gathered(), t.x, problem), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("like", MEMORY_FORMATS.values(), ids=str)
def test_taps_that_meet_padding_alone_have_no_gradient(like):
    """torch's convolution leaves them unwritten in bfloat16, with strides."""
    need_library()
    x, dy = (torch.ones(2, 32, 2, 1, dtype=torch.bfloat16).contiguous(memory_format=like) for _ in range(2))
    sides, planes = ((2, 1), (1, 3), (1, 3), (0, 2), (1, 1)), like is torch.contiguous_format
    problem = Problem("rowsparse_wgrad_conv2d", x.dtype, 2, 32, 32, 32, *sides, 2, planes)
    for path in paths.conv2d_wgrad_paths(problem):
        for _ in range(20):
            torch.full((32, 16, 1, 3), 7.5, dtype=x.dtype)  # what fresh memory may then hold
            assert conv2d.WGRAD[path](dy, x, problem).sum((0, 1, 2)).tolist() == [0, 0, 32 * 16 * 4], path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_only_a_path_that_can_do_it_is_chosen(data):
    def pair(least, most):
        return data.draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    k, sides = data.draw(st.integers(1, 2048)), (pair(1, 300), pair(1, 7), pair(1, 2), pair(0, 3), pair(1, 2))
    problem = Problem(
        "rowsparse_wgrad_conv2d", data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 200)),
        data.draw(st.integers(1, 2048)), k, k, *sides, data.draw(st.integers(1, 2)), data.draw(st.booleans()),
    )  # fmt: skip
    for capability in ("baseline", "avx2", "avx512"):
        assert paths.conv2d_wgrad_path(problem, capability) in paths.conv2d_wgrad_paths(problem)
        assert paths.conv2d_dgrad_path(problem, capability) in paths.conv2d_dgrad_paths(problem)


def test_the_compiled_ops_guard_their_memory():
    need_library()
    compiled, x, square = torch.ops.wuskern_native, torch.zeros(2, 4, 6, 6), ((3, 3), (1, 1), (1, 1))
    for dy, given_x in (
        (torch.zeros(2, 3, 5, 6), x),
        (torch.zeros(1, 3, 6, 6), x),
        (torch.zeros(2, 3, 6, 6), x[..., ::2]),
        (torch.zeros(2, 3, 6, 6).half(), x.half()),
    ):
        with pytest.raises(RuntimeError, match=r"(dy|x): expected"):
            compiled.direct_wgrad(dy, given_x, *square, False)
    with pytest.raises(RuntimeError, match="dy: expected"):
        compiled.unfold_gradient(torch.zeros(2, 3, 5, 6), (6, 6), *square, 0)


def test_direct_dgrad_guards_its_memory():
    need_library()
    square = ((3, 3), (1, 1), (1, 1))
    for dy, weight, out in (
        (torch.zeros(2, 3, 5, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 6)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 26), torch.zeros(2, 4, 6, 6)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 6, dtype=torch.float64)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 12)[..., ::2]),
    ):
        with pytest.raises(RuntimeError, match=r"(dy|weight|out): expected"):
            torch.ops.wuskern_native.direct_dgrad(dy, weight, *square, False, out)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("k", [1, 2])
def test_direct_dgrad_of_one_row_and_whole_vectors_of_channels(k, layout):
    need_library()
    t = conv_tensors(Conv("", 1, 16, 2, 5, 3, padding=1), torch.float32, layout, k)
    assert_exact(conv2d.DGRAD["direct"](t.gathered(), t.weight[t.rows], t.dgrad_problem), stock_dgrad(t.double()))


def test_a_matrix_in_pieces_of_memory_is_copied_for_onednn():
    if product.onednn_obstacle():
        pytest.skip(product.onednn_obstacle())
    a, b = torch.randn(20, 60)[:, ::2], torch.randn(10, 1).expand(10, 30)
    torch.testing.assert_close(product.PRODUCTS["onednn"](a, b), a @ b.t())


def test_torchs_switches_are_obeyed(monkeypatch):
    monkeypatch.setattr(product, "vendor", lambda: "AuthenticAMD")
    torch._C._set_mkldnn_enabled(False)  # what torch.backends.mkldnn.flags calls, with warnings of its own
    try:
        assert product.onednn_obstacle() == "torch.backends.mkldnn.enabled is False"
    finally:
        torch._C._set_mkldnn_enabled(True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # as float32_matmul_precision "medium" does
        assert "float32_matmul_precision" in product.onednn_obstacle()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    monkeypatch.setattr(product, "vendor", lambda: "GenuineIntel")
    assert product.onednn_obstacle() == "MKL serves this processor (GenuineIntel)"


@pytest.mark.parametrize(("depth", "parts"), [(1, 1), (448, 1), (449, 2), (512, 2), (4096, 8), (65536, 32)])
def test_parts_of_a_deep_product(depth, parts):
    assert paths.onednn_parts(depth) == parts


@pytest.mark.parametrize("padding", [(0, 0), (2, 0), (0, 2), (1, 3)])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_1x1_kernel_that_meets_padding(batch, size, padding):
    """Pixels of the output that see padding alone add nothing, in images of one row too."""
    torch.manual_seed(0)
    x = torch.randn(batch, 8, *size).to(torch.bfloat16)
    out = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    dy = torch.randn(batch, 2, *out).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        dw = ops.rowsparse_wgrad_conv2d(dy, x, torch.arange(2), (1, 1), (1, 1), padding, (1, 1), 1)
        inside = dy[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
        exact = torch.einsum("bkhw,bchw->kc", inside.double(), x.double())
        torch.testing.assert_close(dw.double().flatten(1), exact, rtol=2**-7, atol=2**-6)

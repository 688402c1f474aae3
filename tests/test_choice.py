"""The choice between native, triton and library: counted where nothing is measured, interpolated where something is."""

import dataclasses
import json
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import Conv
from tests.rowsparse import LINEARS, NUMERIC, conv_tensors, integers, some_rows, stock_dgrad, stock_wgrad
from wuskern import backends, by_problem, choice, gpus, library, measured, ops, reference
from wuskern.gpus import ARCHITECTURES, architecture
from wuskern.product import OPS, Product
from wuskern.shapes import memory_format

LINEAR = Product("rowsparse_dgrad", "bfloat16", tokens=2048, features=4096, out=4096, k=204, inputs=2048 * 4096)


# ---- the capability -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("8.0", "sm_80"),
        ("8.9", "sm_80"),
        ("sm_90a", "sm_90"),
        ("10.3", "sm_100"),
        ("sm_120", "sm_120"),
        ("12.1", "sm_120"),
        ("7.5", "sm_80"),
        ("gfx90a", "gfx942"),
    ],
)
def test_an_architecture_serves_the_capabilities_of_its_major(capability, expected):
    assert architecture(capability) == expected


def test_a_capability_in_other_words_is_refused():
    with pytest.raises(ValueError, match=r"capability: expected such as sm_90, 9.0 or gfx942, got 'hopper'"):
        architecture("hopper")


def test_where_triton_is_interpreted_tiles_are_those_of_the_least_gpu():
    assert gpus.architecture_of(torch.device("cpu")) == "sm_80"


# ---- counted --------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    """2048 tokens, 204 of 4096 rows, 4096 features, 2 bytes: a token has 256 sectors of 16 rows. Tiles of 64 x 64 x 32."""
    touched = 1 - (1 - 204 / 4096) ** 16
    read, compact = int(2048 * 4096 * 2 * touched), 2048 * 204 * 2
    rest = (2048 * 4096 + 204 * 4096) * 2  # dx, the weight's rows
    found = choice.counts(LINEAR, "sm_80")
    ours = choice.Count(read + 2 * compact + rest, 2 * 2048 * 4096 * 224, 2)  # gathered first: 64 tiles would read it again
    assert found["native"] == found["triton"] == ours  # packed
    assert found["library"].launches == 3  # two gathers and a product
    assert found["library"].moved == ours.moved + 2 * 204 * 4096 * 2


def test_what_lies_in_planes_or_not_in_eights_is_packed_by_the_cuda_kernels():
    """A convolution of 16 channels, 3 x 3, of 1000 pixels, 24 rows, in two bytes."""
    p = Product("rowsparse_wgrad_conv2d", "bfloat16", 1000, 144, out=24, k=24, inputs=16000, taps=9)
    least = choice.counts(p, "9.0")["native"]
    assert least.moved < choice.counts(dataclasses.replace(p, planes=True), "9.0")["native"].moved == least.moved + 4 * 40000
    odd = dataclasses.replace(p, out=20, k=20)
    assert choice.counts(odd, "9.0")["native"].launches == least.launches + 1
    assert choice.counts(dataclasses.replace(odd, dtype="float32"), "9.0")["native"].launches == least.launches


def test_tf32_is_for_triton_and_the_library():
    p = dataclasses.replace(LINEAR, dtype="float32", tokens=32768, inputs=32768 * 4096, out=2048, k=2048)
    exact, allowed = (choice.choose(dataclasses.replace(p, tf32=tf32), "9.0").seconds for tf32 in (False, True))
    assert exact["native"] == allowed["native"]
    assert allowed["library"] < exact["library"] / 5
    assert allowed["triton"] < exact["triton"] / 5


def test_a_compact_dy_is_read_once():
    compact = dataclasses.replace(LINEAR, out=208, k=208)
    assert choice.counts(compact, "8.0")["native"].moved == (2048 * 208 + 2048 * 4096 + 208 * 4096) * 2


def test_partial_sums_are_written_and_read():
    """512 tokens of 128 features and 16 rows are one tile: in four parts of 128 tokens each in fp32."""
    p = Product("rowsparse_wgrad", "bfloat16", tokens=512, features=128, out=16, k=16, inputs=512 * 128)
    counted = choice.counts(p, "sm_80")["triton"]
    assert counted.launches == 2
    assert counted.moved == (512 * 16 + 512 * 128 + 16 * 128) * 2 + 2 * 4 * 16 * 128 * 4


def test_the_floor_is_the_slower_of_memory_and_arithmetic_and_the_launches():
    rates = gpus.Rates("x", 100.0, {"float32": 10.0}, launch=1.0)
    assert choice.Count(moved=200, operations=10, launches=3).floor(rates, "float32", 0.5) == 2 + 3
    assert choice.Count(moved=200, operations=40, launches=1).floor(rates, "float32", 0.5) == 8 + 1


def test_memory_bound_problems_stay_with_our_kernel_and_large_products_go_to_the_library():
    assert choice.choose(LINEAR, "9.0").way == "native"
    half = dataclasses.replace(LINEAR, tokens=32768, inputs=32768 * 4096, out=2048, k=2048)
    assert choice.choose(half, "9.0").way == "library"
    assert "counted, with the rates of H200" in choice.choose(half, "9.0").reason


products = st.builds(
    lambda op, dtype, tokens, features, k, more, taps, groups, planes: Product(
        op, dtype, tokens, features * taps, k * groups + more, k * groups, tokens * features * groups, taps, groups, planes
    ),
    op=st.sampled_from(OPS),
    dtype=st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
    tokens=st.integers(1, 10**6),
    features=st.integers(1, 10**4),
    k=st.integers(1, 10**3),
    more=st.integers(0, 10**4),
    taps=st.sampled_from([1, 4, 9]),
    groups=st.sampled_from([1, 2, 8]),
    planes=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(products, st.sampled_from(ARCHITECTURES), st.sets(st.sampled_from(choice.WAYS), min_size=1))
def test_any_problem_has_a_way_among_those_there_are(p, capability, ways):
    decision = choice.choose(p, capability, tuple(sorted(ways)))
    assert decision.way in ways
    assert set(decision.seconds) == ways
    assert choice.floor(p, capability) <= min(decision.seconds.values()) * (1 + 1e-9)
    assert decision == choice.choose(p, capability, tuple(sorted(ways)))


# ---- measured -------------------------------------------------------------------------------------------------------


def truth(p: Product) -> dict[str, float]:
    """A GPU whose ways are as far from their floors as their sizes say, smoothly."""
    floors = {way: choice._floor(way, "9.0", p) for way in choice.WAYS}
    small = 1 / (1 + p.operations / 1e10)
    slower = {"native": 1.2 + small, "triton": 1.1 + 2 * small, "library": 1 + 3 * small}
    return {way: floors[way] * slower[way] for way in choice.WAYS}


def linear(tokens: int, features: int, k: int) -> Product:
    return Product("rowsparse_wgrad", "bfloat16", tokens, features, k, k, tokens * features)


def points(*problems: Product) -> tuple[measured.Point, ...]:
    return tuple(measured.Point(p, tuple(truth(p).items())) for p in problems)


TABLE = points(*(linear(t, f, k) for t in (512, 4096, 32768) for f in (768, 3072, 12288) for k in (32, 128, 512)))


def test_what_was_measured_decides_at_its_own_problem():
    for point in TABLE:
        decision = choice.choose(point.product, "9.0", table=TABLE)
        assert decision.seconds == pytest.approx(dict(point.seconds))
        assert decision.reason == "measured nearby, with the rates of H200"


def test_the_regret_outside_the_table_is_a_few_percent():
    regrets = []
    for p in (linear(t, f, k) for t in (1000, 9000) for f in (1000, 5000) for k in (50, 200, 400)):
        exact = truth(p)
        regrets.append(exact[choice.choose(p, "9.0", table=TABLE).way] / min(exact.values()) - 1)
    assert statistics.median(regrets) <= 0.1


def test_a_measured_way_is_not_compared_with_one_that_nobody_measured():
    only = (measured.Point(LINEAR, (("library", 1.0), ("triton", 2.0))),)
    assert choice.choose(LINEAR, "9.0", table=only).way == "library"
    assert choice.choose(LINEAR, "9.0", ("native",), only).way == "native"


def test_of_the_points_nearby_the_nearer_weigh_more():
    """At distances 1 and 2 (of taps, in powers of two), measured at 2 and 32 times the floor: weights 1 and 1/4."""
    one, two, eight = (dataclasses.replace(LINEAR, taps=taps) for taps in (1, 2, 8))
    table = measured.Point(one, (("native", 2.0),)), measured.Point(eight, (("native", 32.0),))
    assert measured.slowdown(table, two, "native", lambda p: 1.0) == pytest.approx(2 ** ((1 + 5 / 4) / (1 + 1 / 4)))


def test_problems_of_another_kind_say_nothing():
    other = dataclasses.replace(LINEAR, dtype="float32")
    assert measured.slowdown(points(linear(64, 64, 4)), other, "native", lambda p: 1.0) is None


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "sm_90.json"
    path.write_text(measured.content(TABLE, {"gpu": "H200"}))
    assert measured.read(path) == TABLE


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1}', '{"format": 1, "points": [{"product": {}}]}'])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x.json: expected a table of format 1, got"):
        measured.read(path)


def test_the_tables_of_the_package_can_be_read():
    for name in ARCHITECTURES:
        for point in measured.of(name):
            json.dumps(dataclasses.asdict(point))
    assert {path.stem for path in measured.FOLDER.glob("*.json")} <= set(ARCHITECTURES)


# ---- the library's way, and the run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_the_library_multiplies_a_linears_rows(shape, packed):
    tokens, out, inputs = shape
    rows = some_rows(out, max(1, out // 3))
    dy, x, weight = integers(tokens, out), integers(tokens, inputs), integers(out, inputs)
    given_dy = dy[:, rows] if packed else dy
    for op, other in (("rowsparse_wgrad", x), ("rowsparse_dgrad", weight)):
        ours = library.runner(op, reference.gather_rows)(given_dy, other, rows)
        assert torch.equal(ours, getattr(reference, op)(dy, other, rows))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_the_library_convolves_the_chosen_rows(case, layout):
    t = conv_tensors(case, torch.float32, layout)
    wgrad = t.dy, t.x, t.rows, t.weight.shape[2:], *t.geometry
    dgrad = t.dy, t.weight, t.rows, t.x.shape[2:], *t.geometry
    dw = library.runner("rowsparse_wgrad_conv2d", reference.gather_rows)(*wgrad)
    dx = library.runner("rowsparse_dgrad_conv2d", reference.gather_rows)(*dgrad)
    assert torch.equal(dw, stock_wgrad(t))
    assert torch.equal(dx, stock_dgrad(t))
    assert dw.is_contiguous()
    assert dx.is_contiguous(memory_format=memory_format(t.dy))


def test_a_problem_is_read_off_the_arguments():
    dy, x, rows = torch.empty(2, 8, 5, 6), torch.empty(2, 6, 5, 6), torch.arange(4)
    geometry = (1, 1), (1, 1), (1, 1), 2
    wgrad = by_problem.product_of("rowsparse_wgrad_conv2d", dy, x, rows, (3, 3), *geometry)
    expected = Product("rowsparse_wgrad_conv2d", "float32", 60, 27, 8, 4, x.numel(), taps=9, groups=2, planes=True)
    expected = dataclasses.replace(expected, tf32=True)  # what torch allows cuDNN by default
    assert wgrad == expected
    dgrad = by_problem.product_of("rowsparse_dgrad_conv2d", dy, torch.empty(8, 3, 3, 3), rows, (5, 6), *geometry)
    assert dgrad == dataclasses.replace(expected, op="rowsparse_dgrad_conv2d")
    linear = by_problem.product_of("rowsparse_dgrad", torch.empty(3, 7, 9), torch.empty(9, 4), rows)
    assert linear == Product("rowsparse_dgrad", "float32", 21, 4, 9, 4, 84)


def test_the_chosen_way_runs_and_gets_the_arguments(monkeypatch):
    seen = []
    runs = {way: lambda *a, way=way: seen.append((way, a)) for way in choice.WAYS}
    arguments = torch.ones(4, 6), torch.ones(4, 3), torch.tensor([1, 2])
    for way in choice.WAYS:
        monkeypatch.setattr(choice, "choose", lambda *a, way=way: choice.Decision(way, {}, ""))
        by_problem.runner("rowsparse_wgrad", runs)(*arguments)
    assert [way for way, _ in seen] == list(choice.WAYS)
    assert all(a == arguments for _, a in seen)


@pytest.mark.parametrize("there", [("native", "triton"), ("triton",), ("native",), ()])
def test_a_gpu_takes_the_ways_that_there_are(monkeypatch, there):
    found = {n: (lambda op, device, n=n: print if n in there else f"no {n} here") for n in ("native", "triton")}
    for name, run in found.items():
        monkeypatch.setitem(backends._BACKENDS, name, run)
    taken = backends._choose.__wrapped__("rowsparse_wgrad", "cuda", None)
    assert taken.backend == (there[0] if there else "reference")
    for name in ("native", "triton"):
        assert (f"not {name}: no {name} here" in taken.reason) == (name not in there)
    if there:
        assert taken.reason.startswith(f"{' or '.join((*there, 'library'))}, by the problem")


# ---- with a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("way", [*choice.WAYS, "chosen"])
def test_every_way_is_right_on_a_gpu(way, layout, dtype):
    """Of small integers, whose sums are exact, up to the rounding of the result."""
    t = conv_tensors(Conv("3x3", 4, 16, 48, 12, 3, padding=1), dtype, layout, k=8)
    dy, x, weight, rows = (tensor.cuda() for tensor in (t.dy, t.x, t.weight, t.rows))
    calls = {
        "rowsparse_wgrad": (dy[:, :, 0, 0], x[:, :, 0, 0], rows),
        "rowsparse_dgrad": (dy[:, :, 0, 0], weight[:, :, 0, 0], rows),
        "rowsparse_wgrad_conv2d": (dy, x, rows, (3, 3), *t.geometry),
        "rowsparse_dgrad_conv2d": (dy, weight, rows, x.shape[2:], *t.geometry),
    }
    for op, arguments in calls.items():
        runs = {"chosen": getattr(ops, op)} | backends.ways(op, "cuda")[0]
        if way in runs:
            exact = getattr(reference, op)(*(a.double() if a is not rows else a for a in arguments[:3]), *arguments[3:])
            assert torch.equal(runs[way](*arguments), exact.to(dtype)), op


@pytest.mark.gpu
def test_a_gpu_says_its_capability_and_its_architecture_is_known():
    device = torch.device("cuda")
    assert gpus.architecture_of(device) in ARCHITECTURES
    assert gpus.capability_of(device) == gpus.capability_of(torch.device("cuda", torch.cuda.current_device()))

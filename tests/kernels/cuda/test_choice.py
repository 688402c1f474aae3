"""The choice between native, triton and library: counted where nothing is measured, interpolated where something is."""

import dataclasses
import json
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wuskern.kernels.cuda import choice, gpus, measured
from wuskern.kernels.cuda.gpus import ARCHITECTURES, architecture
from wuskern.kernels.cuda.product import OPS, Product

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


@pytest.mark.gpu
def test_a_gpu_says_its_capability_and_its_architecture_is_known():
    device = torch.device("cuda")
    assert gpus.architecture_of(device) in ARCHITECTURES
    assert gpus.capability_of(device) == gpus.capability_of(torch.device("cuda", torch.cuda.current_device()))


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

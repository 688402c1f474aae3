"""What ``wuskern bench`` refuses to time: a wrong result of any variant, by its name."""

import pytest
import torch

from wuskern.bench.asked import Asked
from wuskern.bench.variants import Gradients, Variants
from wuskern.bench.verify import verify

LINEAR = Asked("linear", (64, 40, 48), torch.float32, 0.1)
CONV = Asked("conv2d", (3, 12, 16, 7, 3), torch.float32, 0.25, padding=1, groups=2, channels_last=True)


def run(asked):
    torch.manual_seed(0)
    variants = Variants(asked)
    batch = asked.batch(variants.stock)
    return variants, {name: run(*batch) for name, run in variants.runs.items()}, batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "sizes", "further"), [
    ("linear", (64, 40, 48), {}),
    ("linear", (3, 2, 2), {"ratio": 1.0}),
    ("conv2d", (3, 12, 16, 7, 3), {"padding": 1, "groups": 2, "channels_last": True}),
    ("conv2d", (2, 6, 6, 8, 3), {"stride": 2, "groups": 6}),
])  # fmt: skip
def test_all_variants_are_right(kind, sizes, further, dtype):
    variants, results, batch = run(Asked(kind, sizes, dtype, **{"ratio": 0.25, **further}))
    verify(variants, results, *batch)


def spoiled(gradients: Gradients) -> list[Gradients]:
    """Gradients of which one is off by 2 % of its largest value, in one place."""

    def off(t):
        t = t.clone()
        t.view(-1)[t.abs().flatten().argmax()] *= 1.02 if t.numel() < 10**4 else 0.9
        return t

    def far(t):
        return t * 1.02

    change = [gradients._replace(x=far(gradients.x)), gradients._replace(bias=off(gradients.bias))]
    return change + ([] if gradients.weight is None else [gradients._replace(weight=far(gradients.weight))])


@pytest.mark.parametrize("asked", [LINEAR, CONV], ids=["linear", "conv2d"])
def test_a_gradient_that_is_off_is_refused_by_the_name_of_its_variant(asked):
    variants, results, batch = run(asked)
    for name, found in results.items():
        wrong = spoiled(found) if isinstance(found, Gradients) else [found * 1.01]
        for result in wrong:
            with pytest.raises(AssertionError, match=f"^{name}: "):
                verify(variants, {name: result}, *batch)


def test_a_weight_gradient_of_a_skip_and_other_rows_or_columns_are_refused():
    variants, results, batch = run(LINEAR)
    rows, columns = results["rows"], results["columns"]
    chosen = rows.weight.any(1)
    others = rows._replace(weight=torch.where(chosen.roll(1)[:, None], results["stock"].weight, 0.0))
    fewer = rows._replace(weight=rows.weight.clone().index_fill_(0, chosen.nonzero()[0], 0.0))
    more = columns._replace(weight=results["stock"].weight)
    frozen = results["skip"]._replace(weight=results["stock"].weight)
    for name, wrong, said in (
        ("rows", others, "largest sums"),
        ("rows", fewer, "expected 4 rows, got 3"),
        ("columns", more, "zeros outside"),
        ("skip", frozen, "expected no gradient"),
    ):
        with pytest.raises(AssertionError, match=said):
            verify(variants, {name: wrong}, *batch)

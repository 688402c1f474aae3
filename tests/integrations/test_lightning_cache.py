"""An activation cache in Lightning: the batch says which samples it holds."""

from typing import Any

import pytest
import torch

from tests.integrations import lit
from wuskern.integrations.lightning import WuskernCallback
from wuskern.policies import ActivationCache, SingleShotFreezing

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]


class Cached(lit.Lit):
    """Calls its network in a block that says which samples come."""

    def __init__(self, cache: ActivationCache, wrong: bool = False) -> None:
        super().__init__(cache.model)
        self.cache, self.wrong = cache, wrong

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with self.cache.at(batch[0].roll(1) if self.wrong else batch[0]):
            return super().training_step(batch, batch_idx)


def frozen() -> tuple[Any, SingleShotFreezing]:
    net = lit.network()
    return net, SingleShotFreezing(net, lit.X[:2], at=0, share=0.4)


@pytest.mark.parametrize("arguments", [{}, dict(precision="bf16-mixed"), dict(accumulate_grad_batches=2)], ids=str)
def test_training_by_a_cache_is_training_without(arguments: dict[str, Any]) -> None:
    plain, policy = frozen()
    lit.fit(lit.Lit(plain), WuskernCallback(policy), **arguments)
    net, policy = frozen()
    cache = ActivationCache(policy, lit.X, chunk=8)
    lit.fit(Cached(cache), WuskernCallback(policy), **arguments)
    assert (cache.reason, cache.layers, policy.depth) == (None, 1, 1)
    tolerance = 0.05 if "precision" in arguments else 1e-5
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=tolerance, atol=tolerance / 10)


def test_indices_of_other_samples_raise() -> None:
    _, policy = frozen()
    module = Cached(ActivationCache(policy, lit.X, chunk=8), wrong=True)
    with pytest.raises(ValueError, match="inputs: expected input to be as in the samples that the index names, got others"):
        lit.fit(module, WuskernCallback(policy))

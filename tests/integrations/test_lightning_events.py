"""Lightning: which events count, which metric, which optimizers, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.integrations import lit
from wuskern.integrations.lightning import WuskernCallback

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]


class Noted(wk.policies.WUS):
    """A policy that takes note of its calls: s, before a step; e, after it; E, an epoch; m, a metric."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.noted = ""

    def on_step_begin(self) -> None:
        self.noted += "s"

    def on_step_end(self) -> None:
        self.noted += "e"

    def on_epoch_end(self) -> None:
        self.noted += "E"

    def on_evaluation(self, metric: float) -> bool:
        self.noted += "m"
        return super().on_evaluation(metric)


def noted(metric: str | None = "accuracy", **given: Any) -> WuskernCallback:
    return WuskernCallback(lambda model: Noted(model, window=1, warmup=0), metric, **given)


def test_the_events_of_two_epochs_and_none_of_the_sanity_check() -> None:
    callback = noted()
    lit.fit(lit.Lit(), callback, num_sanity_val_steps=-1)
    assert callback.policy.noted == 2 * ("se" * 6 + "mE")


def test_an_evaluation_in_the_middle_of_an_epoch_counts() -> None:
    callback = noted()
    lit.fit(lit.Lit(), callback, val_check_interval=3, accumulate_grad_batches=2)
    assert callback.policy.noted == 2 * ("se" + "s" + "m" + "e" + "se" + "mE")


def test_a_batch_without_a_step_begins_none() -> None:
    callback = noted()
    lit.fit(lit.Lit(), callback, accumulate_grad_batches=4)
    assert callback.policy.noted == 2 * ("sese" + "mE")


# ---- the metric -----------------------------------------------------------------------------------------------------


class InTraining(lit.Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("right", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("validation", [True, False])
def test_a_metric_of_the_training_batches_is_taken_when_the_epoch_ends(validation: bool) -> None:
    callback = noted("right", check_on_train_epoch_end=True if validation else None)
    lit.fit(InTraining(), callback, validation=validation)
    assert callback.policy.noted == 2 * ("se" * 6 + "Em")
    assert callback.policy.history == [2.5, 2.5]


def test_a_metric_that_nobody_logged_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="metric: expected one of accuracy, got 'val_acc'"):
        lit.fit(lit.Lit(), noted("val_acc"))


def test_a_policy_that_looks_at_a_metric_has_one() -> None:
    with pytest.raises(ValueError, match="metric: expected the name of one, which Noted looks at, got none"):
        lit.fit(lit.Lit(), noted(None))


def test_a_policy_that_looks_at_none_needs_none() -> None:
    callback = WuskernCallback("meprop:ratio=.5")
    lit.fit(lit.Lit(), callback)
    assert isinstance(callback.policy, wk.policies.MeProp)


# ---- policies -------------------------------------------------------------------------------------------------------


def test_a_method_by_name_converts_the_module_and_has_its_example_from_the_data() -> None:
    module = lit.Lit(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(lit.X, lit.Y), 4)
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module(batch[0]), batch[1])  # type: ignore[method-assign]
    callback = WuskernCallback("wus+lr:warmup=0+freeze:start=0:end=2", "accuracy")
    trainer = lit.fit(module, callback, data=data, max_epochs=3)
    assert isinstance(module.net[0], wk.SkippableLinear)
    assert callback.policy.policies[1].depth == 1
    assert callback.policy.policies[0].optimizer is trainer.optimizers[0]


def test_an_example_of_the_module_comes_first() -> None:
    module, seen = lit.Lit(), []
    module.example_input_array = torch.ones(5, 8)

    def make(model: Any, example: Any) -> Any:
        seen.append(example)
        return wk.policies.SingleShotFreezing(model, example, at=1)

    lit.fit(module, WuskernCallback(make))
    assert torch.equal(seen[0], torch.ones(5, 8))


@pytest.mark.parametrize("policy", ["dense", "meprop:ratio=.5"])
def test_a_sampler_of_the_training_data_is_stepped_after_each_epoch(policy: str) -> None:
    module = lit.Lit()
    module.sampler = wk.policies.SievingSampler(len(lit.X), keep=0.7, rate=0.5, interval=1)
    begin = module.sampler.training
    callback = WuskernCallback(policy)
    lit.fit(module, callback, data=lit.loader(sampler=module.sampler))
    assert module.sampler.epoch == 2
    assert not torch.equal(module.sampler.training, begin)
    assert callback.state_dict()["ranks"][0]["samplers"][0]["epoch"] == 2


def test_a_policy_of_another_module_is_refused() -> None:
    with pytest.raises(ValueError, match="policy: expected one of the model that is trained"):
        lit.fit(lit.Lit(), WuskernCallback(wk.policies.MeProp(lit.network(), ratio=0.5)))


def test_a_rate_of_another_optimizer_is_refused() -> None:
    module = lit.Lit()
    other = lit.sgd(module.net)
    with pytest.raises(ValueError, match="policy: expected WUSLR with an optimizer of this training"):
        lit.fit(module, WuskernCallback(wk.policies.WUSLR(module.net, other), "accuracy"))


def test_a_second_fit_goes_on_with_the_new_optimizer() -> None:
    module = lit.Lit()
    callback = WuskernCallback(lambda model, optimizer: wk.policies.WUSLR(model.net, optimizer), "accuracy")
    lit.fit(module, callback)
    trainer = lit.fit(module, callback)
    assert callback.policy.history == [0.5] * 4
    assert callback.policy.optimizer is trainer.optimizers[0]
    lit.fit(lit.Lit(), callback)
    assert callback.policy.history == [0.5] * 2


def test_a_state_may_be_loaded_ahead_of_training_or_while_it_goes_on() -> None:
    first = noted()
    lit.fit(lit.Lit(), first)
    state = first.state_dict()

    class Late(lit.L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            late.load_state_dict(state)

    early, late = noted(), noted()
    early.load_state_dict(state)
    assert early.state_dict() == state  # what waits is not lost
    lit.fit(lit.Lit(), early, max_epochs=1)
    lit.fit(lit.Lit(), late, Late(), max_epochs=1)
    assert early.policy.history == late.policy.history == [0.5] * 3


def test_what_was_attached_is_gone_behind_the_training() -> None:
    callback = noted()
    trainer = lit.fit(lit.Lit(), callback)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    assert callback.state_dict()["ranks"][0]["policy"]["history"] == [0.5, 0.5]


def test_the_trainer_of_pytorch_lightning_takes_it() -> None:
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)

    class Module(other.LightningModule):  # type: ignore[name-defined, misc]
        forward, training_step, validation_step = lit.Lit.forward, lit.Lit.training_step, lit.Lit.validation_step
        configure_optimizers = lit.Lit.configure_optimizers

    module = Module()
    module.net, module.make_optimizer, module.metric, module.sampler = lit.network(), lit.sgd, 0.5, None
    callback = noted()
    with lit.without_advice():
        trainer = other.Trainer(max_epochs=2, accelerator="cpu", devices=1, callbacks=[callback], **quiet)
        trainer.fit(module, lit.loader(), lit.loader())
    assert callback.policy.noted == 2 * ("se" * 6 + "mE")

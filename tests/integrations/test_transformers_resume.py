"""A training by transformers' Trainer that goes on from a checkpoint, in a new Trainer with a new model, ends with the bits of
one that was not interrupted: under every method."""

import pytest

import wuskern as wk
from tests.integrations.trainer import Words, bert, callback, trainer, transformers, weights
from tests.policies.test_resume import same
from wuskern.integrations.transformers import WuskernCallback
from wuskern.train import pairs

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]

CUT = 7  # within the second epoch


class Sieving(transformers.Trainer):
    """A Trainer whose data the policy's sampler chooses, and which tells it what the model got right."""

    def _get_train_sampler(self, *_):
        return self.policy.sampler

    def compute_loss(self, model, inputs, return_outputs=False, **given):
        index = inputs.pop("index", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **given)
        if model.training:
            self.policy.sampler.record(index, outputs.logits.argmax(-1) == inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Indexed(Words):
    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": i}


def made(name, folder, dropout=0.1, **given):
    """A Trainer of a new model, with the method of that name and the arguments of its trial."""
    model = bert(dropout)
    if name != "spfde":
        text = "ssprop:linear=true" if name == "ssprop" else pairs.trial(name)
        return trainer(model, folder, text, **given)
    example = {"input_ids": Words().ids[:2]}
    policy = wk.policies.SpFDE(
        wk.convert(model), example, epochs=4, samples=20, interval=1, sieve_interval=1, rate=0.5, start=0, end=3
    )
    run = trainer(model, folder, policy, kind=Sieving, remove_unused_columns=False, **given)
    run.policy, run.train_dataset = policy, Indexed()
    return run


def state(run):
    return [weights(run.model), run.optimizer.state_dict(), callback(run).policy.state_dict()]


@pytest.mark.parametrize("name", [name for name in wk.policies.METHODS if name != "sieve"])
def test_every_method_goes_on_where_it_was(name, tmp_path):
    whole = made(name, tmp_path, save_strategy="steps", save_steps=CUT)
    whole.train()
    resumed = made(name, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{CUT}"))
    assert same(state(resumed), state(whole))
    begun = made(name, tmp_path)
    begun.train()
    assert CUT < resumed.state.global_step == whole.state.global_step
    assert same(state(begun), state(whole))  # and saving changes nothing


@pytest.mark.parametrize("name", ["wus", "rigl", "freeze", "spfde"])
@pytest.mark.parametrize("evaluated", ["steps", "epoch"])
def test_a_checkpoint_of_the_last_step_is_ahead_of_the_end_of_its_epoch(name, evaluated, tmp_path):
    """Trainer goes on behind it, and leaves that epoch's evaluation out."""
    given = dict(eval_strategy=evaluated, eval_steps=5, save_strategy="steps", save_steps=5, dropout=0.0)
    whole = made(name, tmp_path, **given)
    whole.train()
    resumed = made(name, tmp_path, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert callback(resumed).events.epochs == callback(whole).events.epochs == 4
    if (name, evaluated) != ("wus", "epoch"):
        assert same(state(resumed), state(whole))


def test_an_evaluation_that_is_lost_is_said(tmp_path, caplog):
    given = dict(save_strategy="steps", save_steps=5)
    made("wus", tmp_path, **given).train()
    caplog.clear()
    resumed = made("wus", tmp_path, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert "metric: expected a checkpoint behind the evaluation of epoch 2" in caplog.text
    assert len(callback(resumed).policy.history) == 3


def test_training_that_was_stopped_within_an_epoch_goes_on_in_it(tmp_path):
    """By its argument ``max_steps``; the checkpoint of its end is no end of an epoch."""
    given = dict(save_strategy="epoch", lr_scheduler_type="constant")

    def four_epochs(folder, **more):
        return trainer(bert(), folder, "rigl:epochs=4:sparsity=.5:interval=3", **given, **more)

    whole = four_epochs(tmp_path / "whole")
    whole.train()
    four_epochs(tmp_path, max_steps=CUT).train()
    resumed = four_epochs(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert callback(resumed).events.epochs == 4
    assert same(state(resumed), state(whole))


def test_a_checkpoint_that_was_moved_is_found_by_its_folder_alone(tmp_path):
    run = made("rigl", tmp_path / "old", save_strategy="steps", save_steps=CUT)
    run.train()
    (tmp_path / "old").rename(tmp_path / "moved")
    folder = str(tmp_path / "moved" / f"checkpoint-{CUT}")
    with pytest.raises(
        ValueError, match=r"checkpoint: expected the policy's state of step 7 in .*new/checkpoint-7/wuskern.pt or"
    ):
        made("rigl", tmp_path / "new").train(resume_from_checkpoint=folder)
    other = made("rigl", tmp_path / "new", callbacks=[WuskernCallback(pairs.trial("rigl"), checkpoint=folder)])
    other.train(resume_from_checkpoint=folder)
    assert same(state(other), state(run))


def test_a_state_of_another_run_is_not_taken(tmp_path):
    for name in ("one", "two"):
        made("rigl", tmp_path / name, save_strategy="steps", save_steps=CUT).train()
    files = [tmp_path / name / f"checkpoint-{CUT}" / "wuskern.pt" for name in ("one", "two")]
    files[1].replace(files[0])
    with pytest.raises(ValueError, match="got none of this run"):
        made("rigl", tmp_path / "one").train(resume_from_checkpoint=str(files[0].parent))


def test_a_policy_that_comes_later_begins_anew(tmp_path, caplog):
    made("rigl", tmp_path, callbacks=[], save_strategy="steps", save_steps=CUT).train()
    run = made("rigl", tmp_path)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{CUT}"))
    assert "state: expected that of a policy in the checkpoint, got none" in caplog.text
    assert callback(run).policy.steps == 20 - CUT


def test_trained_twice_it_goes_on_with_the_policy_it_has(tmp_path):
    run = made("rigl", tmp_path)
    run.train()
    run.train()
    assert callback(run).policy.steps == 40
    assert callback(run).policy.epoch == 8


def test_restoring_callbacks_leaves_it_alone(tmp_path):
    given = dict(save_strategy="steps", save_steps=CUT, restore_callback_states_from_checkpoint=True)
    whole = made("rigl", tmp_path, **given)
    whole.train()
    resumed = made("rigl", tmp_path, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{CUT}"))
    assert same(state(resumed), state(whole))

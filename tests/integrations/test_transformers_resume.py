"""A training by transformers' Trainer that goes on from a checkpoint, in a new Trainer with a new model, ends with the bits of
one that was not interrupted: under every method."""

import pytest

import wuskern as wk
from tests.integrations.trainer import Words, bert, trainer, transformers, weights
from tests.policies.test_resume import same
from wuskern.integrations.transformers import WuskernCallback
from wuskern.train import pairs

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]

CUT = 7  # within the second epoch
EVERY_STEP = dict(eval_strategy="steps", eval_steps=1)


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


def made(name, folder, **given):
    """A Trainer of a new model, with the method of that name and the arguments of its trial."""
    model = bert(dropout=0.1)
    if name != "spfde":
        return trainer(model, folder, pairs.trial(name), **given)
    example = {"input_ids": Words().ids[:2]}
    policy = wk.policies.SpFDE(
        wk.convert(model), example, epochs=4, samples=20, interval=1, sieve_interval=1, rate=0.5, start=0, end=3
    )
    run = trainer(model, folder, policy, kind=Sieving, remove_unused_columns=False, **given)
    run.policy, run.train_dataset = policy, Indexed()
    return run


def state(run):
    policy = next(c for c in run.callback_handler.callbacks if isinstance(c, WuskernCallback)).policy
    return [weights(run.model), run.optimizer.state_dict(), None if policy is None else policy.state_dict()]


@pytest.mark.parametrize("name", [name for name in wk.policies.METHODS if name != "sieve"])
def test_every_method_goes_on_where_it_was(name, tmp_path):
    given = dict(save_strategy="steps", save_steps=CUT, **EVERY_STEP)
    whole = made(name, tmp_path, **given)
    whole.train()
    resumed = made(name, tmp_path, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{CUT}"))
    assert same(state(whole), state(resumed))
    assert resumed.state.global_step == 20 if name != "spfde" else resumed.state.global_step

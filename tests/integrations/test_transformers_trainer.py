"""transformers' Trainer with a policy: clipping, accumulation, bfloat16, checkpoints, ties, the best model, metrics."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.integrations.trainer import (
    STEPS,
    Words,
    assert_same,
    bert,
    callback,
    gpt2,
    groups,
    own_loop,
    trainer,
    transformers,
    weights,
)
from wuskern.integrations.transformers import WuskernCallback

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]

WINDOWS = dict(warmup=0, window=1, threshold=1.0, patience=1)
LEAN = (wk.optim.AdamW, {"lr": 0.01})


def fixed_rows(model):
    return wk.policies.ScoreMemory(model, ratio=0.2, reuse=3, scope="weight")


def windows(model):
    return wk.policies.WUS(model, **WINDOWS)


def compared(tmp_path, make=fixed_rows, model=bert, loop=None, **given):
    """The weights of a loop of one's own, and of Trainer."""
    own = wk.convert(model())
    policy = make(own)
    optimizer = wk.optim.AdamW(groups(own), lr=0.01)
    policy.attach(optimizer)
    own_loop(own, optimizer, policy, **(loop or {}))
    other = wk.convert(model())
    run = trainer(other, tmp_path, make, optimizer_cls_and_kwargs=LEAN, **given)
    run.train()
    assert str(callback(run).policy.state_dict()) == str(policy.state_dict())
    return weights(other), weights(own)


def test_accumulation(tmp_path):
    """Two micro-batches a step; of the last step of an epoch one."""
    assert_same(*compared(tmp_path, loop={"micro": 2}, gradient_accumulation_steps=2))


def test_accumulated_windows(tmp_path):
    assert_same(*compared(tmp_path, windows, loop={"micro": 2}, gradient_accumulation_steps=2))


def test_bfloat16(tmp_path):
    assert_same(*compared(tmp_path, loop={"dtype": torch.bfloat16}, bf16=True))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", [fixed_rows, windows])
def test_activation_checkpointing(make, reentrant, tmp_path):
    given = dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_same(*compared(tmp_path, make, **given))


@pytest.mark.parametrize("make", [fixed_rows, lambda model: wk.policies.RigL(model, epochs=4, sparsity=0.5, interval=3)])
def test_tied_weights(make, tmp_path):
    """GPT-2's: the head is the embedding, which trains densely."""
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    found, expected = compared(tmp_path, make, gpt2, eval_strategy="no", metric_for_best_model=None)
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
def test_compiled(tmp_path):
    own, other = wk.convert(bert()), wk.convert(bert())
    trainer(own, tmp_path, windows).train()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        run = trainer(other, tmp_path, windows, torch_compile=True, torch_compile_backend="aot_eager")
        run.train()
    torch._dynamo.reset()
    for name, value in weights(own).items():
        torch.testing.assert_close(weights(other)[name], value, msg=name, atol=1e-5, rtol=1e-4)


class Looking(transformers.TrainerCallback):
    """Keeps the gradients as the optimizer finds them."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.seen.append({name: copy.deepcopy(p.grad) for name, p in model.named_parameters()})


def test_clipping_counts_and_scales_compact_gradients(tmp_path):
    """The norm over all gradients, dense, in float64; far over the limit, so that each is scaled."""
    model, limit = wk.convert(bert()), 0.01
    wk.set_rows(model, wk.Rows([0, 2]))
    dense = wk.convert(bert())
    wk.set_rows(dense, wk.Rows([0, 2]))
    looking = Looking()
    run = trainer(
        model, tmp_path, optimizer_cls_and_kwargs=LEAN, callbacks=[WuskernCallback(Nothing), looking], max_grad_norm=limit,
        max_steps=1, logging_strategy="steps", logging_steps=1, eval_strategy="no",
    )  # fmt: skip
    run.train()
    data = Words()
    dense.train()(**torch.utils.data.default_collate([data[i] for i in range(4)])).loss.backward()
    grads = {name: p.grad for name, p in dense.named_parameters()}
    norm = torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt()
    assert norm > 10 * limit
    assert run.state.log_history[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    found = looking.seen[0]
    assert sum(grad.is_sparse for grad in found.values()) > 10
    for name, grad in grads.items():
        torch.testing.assert_close(found[name].to_dense(), grad * (limit / norm).float(), msg=name, atol=1e-9, rtol=1e-4)
    clipped = torch.stack([g.to_dense().double().square().sum() for g in found.values()]).sum().sqrt()
    assert float(clipped) == pytest.approx(limit, rel=1e-3)


class Nothing(wk.policies.Policy):
    def wants(self, name):
        return {}

    def state_dict(self):
        return {"policy": "Nothing"}

    def check_state(self, state):
        pass

    def load_state_dict(self, state):
        pass


def test_what_is_skipped_stands_still_under_momentum_and_decay(tmp_path):
    model = wk.convert(bert())
    frozen = wk.policies.SingleShotFreezing
    run = trainer(model, tmp_path, lambda model, example: frozen(model, example, at=1, share=0.5), save_strategy="epoch")
    run.train()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    kept = [transformers.BertForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{n * STEPS}") for n in (1, 4)]
    assert torch.equal(weights(kept[0])[name], weights(kept[1])[name])
    assert not torch.equal(weights(kept[0])[name], weights(bert())[name])
    assert not torch.equal(weights(kept[0])["classifier.weight"], weights(kept[1])["classifier.weight"])


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    model = wk.convert(bert())
    run = trainer(model, tmp_path, windows, save_strategy="epoch", load_best_model_at_end=True)
    run.train()
    best = transformers.BertForSequenceClassification.from_pretrained(run.state.best_model_checkpoint)
    assert_same(weights(model), weights(best))
    assert len(callback(run).policy.history) == 4
    assert isinstance(model.classifier, wk.SkippableLinear)


# ---- metrics --------------------------------------------------------------------------------------------------------


def loss_windows(model):
    return wk.policies.WUS(model, mode="min", **WINDOWS)


@pytest.mark.parametrize("best", ["accuracy", "eval_accuracy"])
def test_evaluations_of_training_count_and_no_others(best, tmp_path):
    run = trainer(wk.convert(bert()), tmp_path, windows, metric_for_best_model=best, eval_on_start=True)
    run.evaluate()
    run.train()
    run.evaluate()
    history = callback(run).policy.history
    evaluations = [log["eval_accuracy"] for log in run.state.log_history if "eval_accuracy" in log]
    assert len(history) == 4
    assert history == evaluations[-5:-1]


def test_a_loss_is_a_metric_of_which_less_is_better(tmp_path):
    run = trainer(wk.convert(bert()), tmp_path, loss_windows, metric_for_best_model="loss")
    run.train()
    assert all(value > 0.5 for value in callback(run).policy.history)
    with pytest.raises(ValueError, match="mode: expected 'min' of WUS for 'eval_loss', of which less is better, got 'max'"):
        trainer(wk.convert(bert()), tmp_path, windows, metric_for_best_model="loss").train()
    with pytest.raises(ValueError, match="mode: expected 'max' of WUS for 'eval_accuracy', of which more is better, got 'min'"):
        trainer(wk.convert(bert()), tmp_path, loss_windows).train()
    run = trainer(wk.convert(bert()), tmp_path, callbacks=[WuskernCallback(windows, metric="loss")])
    with pytest.raises(ValueError, match="mode: expected 'min' of WUS for 'eval_loss'"):
        run.train()


def test_a_metric_that_is_not_there(tmp_path):
    run = trainer(wk.convert(bert()), tmp_path, callbacks=[WuskernCallback(windows, metric="f1")])
    with pytest.raises(ValueError, match=r"metric: expected one of eval_accuracy, eval_loss, .*, got 'eval_f1'"):
        run.train()
    with pytest.raises(ValueError, match="metric: expected the name of one, which WUS looks at, got none: give metric="):
        trainer(wk.convert(bert()), tmp_path, windows, metric_for_best_model=None).train()


def test_of_several_evaluation_sets_one_has_the_metric(tmp_path):
    callbacks = [WuskernCallback(windows, metric="b_accuracy")]
    run = trainer(wk.convert(bert()), tmp_path, callbacks=callbacks, metric_for_best_model=None)
    run.eval_dataset = {"a": Words(8, seed=1), "b": Words(8, seed=2), "c": Words(8, seed=3)}
    run.train()
    evaluations = [log["eval_b_accuracy"] for log in run.state.log_history if "eval_b_accuracy" in log]
    assert callback(run).policy.history == evaluations
    assert len(evaluations) == 4


def test_a_policy_of_another_model(tmp_path):
    with pytest.raises(ValueError, match="policy: expected one of the model that is trained"):
        trainer(wk.convert(bert()), tmp_path, windows(wk.convert(bert()))).train()


def test_an_optimizer_of_ones_own_and_its_scheduler(tmp_path):
    model = wk.convert(bert())
    optimizer = wk.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    trainer(model, tmp_path, windows, optimizers=(optimizer, None)).train()
    assert optimizer.state[model.classifier.weight]["momentum_buffer"].abs().sum() > 0


def test_a_window_lowers_the_rate_of_trainers_own_schedule(tmp_path):
    """By half, on entering each."""
    text = "wus+lr:warmup=0:window=1:threshold=1:patience=1"
    run = trainer(bert(), tmp_path, text, logging_strategy="steps", logging_steps=1)
    run.train()
    found = [log["learning_rate"] for log in run.state.log_history if "learning_rate" in log]
    factors = [rate / (0.01 * (1 - step / 20)) for step, rate in enumerate(found)]
    assert factors == pytest.approx([1.0] * 10 + [0.5] * 10 if len(found) == 20 else [], rel=1e-6)


def test_nn_module_without_a_configuration(tmp_path):
    """A plain module that returns a dict with its loss."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(40, 8), nn.Linear(8, 3)

        def forward(self, input_ids, labels=None):
            logits = self.head(self.words(input_ids).mean(1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    run = trainer(Plain(), tmp_path, "wus:warmup=0")
    run.train()
    assert isinstance(run.model.head, wk.SkippableLinear)

"""A policy in transformers' Trainer.

trainer = Trainer(model, args, ..., callbacks=[WuskernCallback("wus:warmup=2")])
"""

import logging
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from wuskern.integrations.data import first_samples, samplers_of
from wuskern.integrations.events import Events, Recipe, Training
from wuskern.policies import Policy

KEY = "wuskern"  # in the part of trainer_state.json that is for callbacks
PREFIX = "eval_"  # of the metrics that Trainer computes

_log = logging.getLogger("wuskern")


class WuskernCallback(TrainerCallback):
    """A callback that drives a policy: it tells it of each optimizer step, epoch and evaluation, attaches it to the optimizer,
    and saves its state beside each checkpoint, in ``wuskern.pt``, from where training that is resumed goes on.

    ``trainer.evaluate()`` outside of training and ``eval_on_start`` do not count as evaluations.

    Args:
        policy: a policy of the model that the Trainer trains; a function that returns one, of the model, or of arguments named
            ``model``, ``optimizer`` and ``example`` (a batch of the training data); or a method in the words of ``wuskern train
            --policy``, such as "wus:warmup=2+freeze", for which the model is converted when training begins.
        metric: the name of the metric that the policy looks at, if it looks at one; None: ``args.metric_for_best_model``.
        checkpoint: the folder of the checkpoint that is resumed, where it is neither in ``args.output_dir`` nor where it was
            written.

    Attributes:
        policy: the policy; None until training begins, if it is yet to be made.

    Raises:
        TypeError, ValueError: no such recipe, or a method that chooses its data. As training begins: a policy that does not
            fit the model, the optimizer or the metric (a loss wants ``mode="min"``); a state that is missing in the checkpoint.
    """

    def __init__(self, policy: Recipe, *, metric: str | None = None, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self.events = Events(policy)
        self.metric = metric
        self.checkpoint = checkpoint
        self._run = uuid.uuid4().hex  # whose the file is
        self._begun: int | None = None  # the step at which training began, while it goes on
        self._seen: set[str] = set()  # names of metrics since the last step

    @property
    def policy(self) -> Policy | None:
        return self.events.policy

    # ---- the Trainer's events -----------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **given: Any
    ) -> None:
        saved = self._saved(args, state) if state.global_step else None
        metric = self.metric or args.metric_for_best_model
        loader = given["train_dataloader"]
        self.events.begin(
            Training(
                model,
                given["optimizer"],
                lambda: first_samples(loader, model),
                epochs=state.num_train_epochs,
                samplers=samplers_of(loader),
                metric=None if metric is None else PREFIX + metric.removeprefix(PREFIX),
                more_is_better=_more_is_better(metric, args),
                seed=args.seed,
                rank=args.process_index,
                world=args.world_size,
            )
        )
        if saved is not None:
            self.events.load_state_dict(saved)
        self._begun, self._seen = state.global_step, set()
        self._catch_up(args, math.floor(state.epoch or 0), new=saved is None)
        state.stateful_callbacks[KEY] = {"args": {}, "attributes": self._mark(args)}  # type: ignore[call-overload]

    def _catch_up(self, args: TrainingArguments, epochs: int, new: bool) -> None:
        """Ends the epoch whose last step was saved ahead of its end; a new policy had no part in it."""
        if new:
            self.events.epochs = epochs
        elif self.events.epochs < epochs:
            self.events.after_epochs(epochs)
            if self.events.evaluates and args.eval_strategy == IntervalStrategy.EPOCH:
                _log.warning(
                    "metric: expected a checkpoint behind the evaluation of epoch %d, got one ahead of it: Trainer goes on "
                    "without that evaluation, and the policy never sees it (save_strategy='epoch' saves behind it)", epochs,
                )  # fmt: skip

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._refuse_missing()
        self.events.before_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.events.after_step()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # ``state.epoch`` is a fraction where training stops within an epoch, and for data of unknown length
        self.events.after_epochs((math.floor if control.should_training_stop else math.ceil)(state.epoch))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, metrics: Mapping[str, float], **_: Any
    ) -> None:
        if self._begun is None or state.global_step == self._begun or not self.events.evaluates:
            return
        self._seen |= {name for name in metrics if name.startswith(PREFIX)}
        if self.events.metric in metrics:  # of several evaluation sets one has it
            self.events.evaluated(metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun = None
        self._refuse_missing()

    def _refuse_missing(self) -> None:
        seen, self._seen = self._seen, set()
        if seen and self.events.metric not in seen:
            self.events.evaluated(dict.fromkeys(seen, 0.0))

    # ---- state --------------------------------------------------------------------------------------------------------

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_hyper_param_search:  # its folders are others, and it resumes none
            return
        path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _file(args)
        partly = path.with_suffix(".partly")
        torch.save({"run": self._run, "step": state.global_step, **self.events.state_dict()}, partly)
        os.replace(partly, path)

    def _mark(self, args: TrainingArguments) -> dict[str, str]:
        return {"run": self._run, "folder": str(Path(args.output_dir).resolve())}

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
        """The state that belongs to the checkpoint that the Trainer has loaded, of whose place it tells nobody; None where this
        callback had no part in it.

        Raises:
            ValueError: it had, and its file is in none of the places where it may be.
        """
        mark = state.stateful_callbacks.get(KEY)  # type: ignore[attr-defined]
        if mark is None:
            _log.warning("state: expected that of a policy in the checkpoint, got none: it begins anew")
            return None
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        folders = [self.checkpoint, args.resume_from_checkpoint]
        folders += [Path(args.output_dir) / name, Path(mark["attributes"]["folder"]) / name]
        paths = list(dict.fromkeys(Path(folder) / _file(args) for folder in folders if isinstance(folder, str | os.PathLike)))
        for path in paths:
            if path.exists():
                saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                if (saved.get("run"), saved.get("step")) == (mark["attributes"]["run"], state.global_step):
                    return saved
        raise ValueError(
            f"checkpoint: expected the policy's state of step {state.global_step} in {' or '.join(map(str, paths))}, got none "
            "of this run: give the folder that is resumed as WuskernCallback(..., checkpoint=...)"
        )


def _file(args: TrainingArguments) -> str:
    return f"{KEY}.pt" if args.world_size <= 1 else f"{KEY}_{args.process_index}.pt"


def _more_is_better(metric: str | None, args: TrainingArguments) -> bool | None:
    """Whether the metric grows as the model improves; None where neither its name nor the arguments tell."""
    names = [name and name.removeprefix(PREFIX) for name in (metric, args.metric_for_best_model)]
    if names[0] == names[1] and args.greater_is_better is not None:
        return bool(args.greater_is_better)
    return False if metric is not None and metric.endswith("loss") else None

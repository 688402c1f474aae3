"""A callback for Lightning. Its base is of ``lightning``, or of ``pytorch_lightning`` where that alone is installed; trainers
of both take it."""

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from wuskern.common import states
from wuskern.common.example import Example
from wuskern.common.world import world_size
from wuskern.distributed import Prepared, broadcast_metric, prepare
from wuskern.integrations.data import first_samples, moved, samplers_of
from wuskern.integrations.events import Events, Recipe, Training, moving, parts
from wuskern.policies import WUSLR, Policy, SievingSampler
from wuskern.simplify import fit_

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

SEED = "PL_GLOBAL_SEED"  # where Lightning's seed_everything leaves it


class WuskernCallback(Callback):
    """A callback that drives a policy: it tells it of each event, attaches it to the optimizers that hold weights of its
    layers, and keeps its state, of all processes, in Lightning's checkpoints. In manual optimization all steps of one
    ``training_step`` count as one.

    The sanity check does not count, nor does the epoch in which ``StochasticWeightAveraging`` estimates BatchNorm anew. A
    ``SievingSampler`` that the training data are drawn by is stepped after each epoch, and saved. After training the plans stay
    on the layers, until ``callback.policy.release()``.

    Args:
        policy: a policy of layers of the module that is trained; a function of the LightningModule, or of arguments named
            ``model``, ``optimizer`` and ``example``, that returns one; or a method in the words of
            ``wuskern train --policy``, for which the module is converted. An example of what ``forward`` takes is the module's
            ``example_input_array``, or else the first samples of the training data, of several tensors the first one.
        metric: which of ``trainer.callback_metrics`` the policy sees, in its ``mode`` and in the unit of its thresholds; None
            for a policy that looks at none. In several processes that of the first one counts.
        check_on_train_epoch_end: take the metric at the end of each training epoch; False: after each validation. None:
            after validation, if there is any.
        prepare_ddp: under DDP send only what was computed, by ``wuskern.distributed.prepare``.

    Attributes:
        policy: None until training begins, if it is yet to be made, and for "dense".

    Raises:
        TypeError, ValueError: no such policy. As training begins: what making or attaching it raises, and a policy without the
            metric that it looks at.
    """

    def __init__(
        self,
        policy: Recipe,
        metric: str | None = None,
        *,
        check_on_train_epoch_end: bool | None = None,
        prepare_ddp: bool = False,
    ) -> None:
        super().__init__()
        self.metric, self.prepare_ddp = metric, prepare_ddp
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self._recipe, self._events = policy, Events(policy)
        self._loaded: dict[str, Any] = {}  # a state, until training begins
        self._training = self._made = False  # now; and at some time
        self._epochs = 0  # that the training will have
        self._samplers: list[SievingSampler] = []
        self._prepared: Prepared | None = None
        self._hooks: list[RemovableHandle] = []
        self._clear()

    @property
    def policy(self) -> Policy | None:
        return self._events.policy

    def _clear(self) -> None:
        self._begun = False  # whether the policy knows of the optimizer step that micro-batches now belong to
        self._stepped = False  # whether an optimizer has stepped in this batch
        self._only_norms = False  # whether this is an epoch without backward, in which norm layers are estimated anew

    # ---- as training begins -----------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Has the module take the sizes of a checkpoint of one that a method made smaller."""
        self._epochs = trainer.max_epochs or 0  # StochasticWeightAveraging adds one
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:  # the only hook ahead of the weights
            del pl_module.on_load_checkpoint
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            if state.get("simplifies"):
                if stage == "fit" and not isinstance(self._recipe, Policy):
                    raise ValueError(
                        "policy: expected one that was made of the whole module, to go on with a smaller one, got what makes "
                        "one as training begins"
                    )
                fit_(pl_module, checkpoint["state_dict"])
            own(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._events.detach()
        self._hooks, self._training = [], False
        self._clear()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the policy and attaches it: behind the sanity check, when optimizers and data are there, and loaded."""
        self._detach()
        self._make_anew(pl_module)
        loaded = self._of_this_process()
        if loaded:
            self._events.load_state_dict(loaded)
        loaders = _pytree.tree_leaves(trainer.train_dataloader)
        samplers = [sampler for loader in loaders for sampler in samplers_of(loader)]
        self._begin(trainer, pl_module, loaders, samplers)
        sieving = [sampler for sampler in samplers if isinstance(sampler, SievingSampler)]
        if loaded and sieving and any(getattr(loader, "num_workers", 0) for loader in loaders):
            raise ValueError(
                "num_workers: expected 0 of a loader with a SievingSampler in a resumed training, whose workers have samples "
                "before the sampler has its state, got more"
            )
        of_policies = [getattr(part, "sampler", None) for part in self._parts()]
        self._samplers = [sampler for sampler in sieving if not any(sampler is own for own in of_policies)]
        self._events.epochs = loaded["epochs"] if loaded else trainer.current_epoch
        if loaded:
            self._load_others(loaded)
        self._loaded, self._training, self._made = {}, True, True
        self._ended(trainer.current_epoch)  # behind a checkpoint of an epoch's last batch Lightning leaves out the epoch's end

    def _begin(self, trainer: Any, pl_module: Any, loaders: list[Any], samplers: list[Any]) -> None:
        optimizers = list(trainer.optimizers)
        self._events.begin(
            Training(
                pl_module,
                optimizers[0],
                lambda: _example(pl_module, loaders),
                self._epochs,
                samplers,
                self.metric,
                others=optimizers[1:],
                seed=int(os.environ.get(SEED, "0")),
                rank=trainer.global_rank,
                world=trainer.world_size,
            )
        )
        attached = [moving(optimizer) for optimizer in self._events.attached]
        for part in self._parts():
            if isinstance(part, WUSLR) and part.optimizer not in attached:
                raise ValueError(
                    "policy: expected WUSLR with an optimizer of this training, got one with another: give a function of model "
                    "and optimizer"
                )
        self._hooks = [optimizer.register_step_post_hook(self._on_step) for optimizer in attached]
        self._prepared = self._prepare(trainer) if self.prepare_ddp and self.policy is not None else None

    def _make_anew(self, pl_module: Any) -> None:
        """Has a policy made anew that was made for an earlier training, with its optimizers, of the same module; it goes on."""
        before = self.policy
        if before is None or isinstance(self._recipe, Policy):
            return
        if not self._loaded and set(before.layers.values()) <= set(pl_module.modules()):
            self._loaded = {"ranks": [self._state_of_this_process()]}
        before.release()
        self._events = Events(self._recipe)

    def _prepare(self, trainer: Any) -> Prepared | None:
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            return prepare(model)
        if trainer.world_size > 1:
            raise ValueError(f"prepare_ddp: expected strategy='ddp', got {type(trainer.strategy).__name__}")
        return None

    def _parts(self) -> tuple[Policy, ...]:
        return () if self.policy is None else parts(self.policy)

    # ---- while it goes on -------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._only_norms = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._only_norms = getattr(trainer.fit_loop, "_skip_backward", False)
        if not self._begun and not self._only_norms:
            self._events.before_step()
            self._begun = True

    def _on_step(self, *_: Any) -> None:
        self._stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._stepped and not self._only_norms:
            self._events.after_step()
            self._begun = False
        self._stepped = False

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._training and not self._at_epoch_end(trainer):  # the sanity check comes before training
            self._evaluated(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._ended(trainer.current_epoch + 1) and self._at_epoch_end(trainer):
            self._evaluated(trainer)

    def _ended(self, epochs: int) -> bool:
        """Tells of the epochs that have ended, each once; returns whether there were new ones."""
        new = 0 if self._only_norms else max(0, epochs - self._events.epochs)
        for _ in range(new):
            self._events.after_epochs(self._events.epochs + 1)
            for sampler in self._samplers:
                sampler.step()
        return new > 0

    def _at_epoch_end(self, trainer: Any) -> bool:
        given = self.check_on_train_epoch_end
        return not trainer.enable_validation if given is None else given

    def _evaluated(self, trainer: Any) -> None:
        metrics: Mapping[str, Any] = trainer.callback_metrics
        if self._only_norms or not self._events.evaluates:
            return
        if self.metric is not None and self.metric in metrics:
            metrics = {self.metric: broadcast_metric(float(metrics[self.metric]))}
        self._events.evaluated(metrics)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of the policy, and of what else chooses, in each process; all call this at once. Tensors and plain data."""
        if self._loaded or not self._made:
            return self._loaded
        ranks: list[Any] = [self._state_of_this_process()]
        if world_size() > 1:
            ranks *= world_size()
            dist.all_gather_object(ranks, ranks[0])
        return {"ranks": ranks, "simplifies": any(part.claims.get("shape") for part in self._parts())}

    def _state_of_this_process(self) -> dict[str, Any]:
        others = {
            "samplers": [sampler.state_dict() for sampler in self._samplers],
            "prepared": None if self._prepared is None else self._prepared.state_dict(),
        }
        return self._events.state_dict() | others

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where the state was taken: now, or as soon as training begins and there is a policy."""
        self._loaded = state_dict
        if self._training:
            state = self._of_this_process()
            self._events.load_state_dict(state)
            self._load_others(state)
            self._loaded = {}

    def _of_this_process(self) -> dict[str, Any]:
        """The state that was loaded of this process; the first one's in a training of another number of processes."""
        ranks: list[dict[str, Any]] = self._loaded.get("ranks", [{}])
        return ranks[dist.get_rank() if 1 < world_size() == len(ranks) else 0]

    def _load_others(self, state: dict[str, Any]) -> None:
        states.items("samplers", state["samplers"], len(self._samplers))
        for sampler, of_sampler in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state_dict(of_sampler)
        if self._prepared is not None and state["prepared"] is not None:
            self._prepared.load_state_dict(state["prepared"])


def _example(pl_module: Any, loaders: list[Any]) -> Example:
    """What the module's ``forward`` takes."""
    example = pl_module.example_input_array
    if example is not None:
        return moved(example, pl_module.device)  # type: ignore[no-any-return]
    batch = first_samples(loaders[0], pl_module)
    return batch[0] if isinstance(batch, list | tuple) else batch  # type: ignore[no-any-return]

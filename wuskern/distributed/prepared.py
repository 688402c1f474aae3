"""What ``prepare`` puts before each forward of DDP, into its communication hook, and after its backward."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import all of the compiler now
from torch.autograd import Variable
from torch.futures import Future
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from wuskern import ops
from wuskern.choices import DENSE, Columns, Plan, Rows, TopK
from wuskern.delivery.observer import Observer
from wuskern.distributed import flags, hook
from wuskern.distributed.rowchoice import LaggedRows
from wuskern.distributed.shares import Share
from wuskern.modules import SkippableLayer, many_tokens, skippable_layers, weight_owners

CommHook = tuple[Any, Callable[[Any, Any], "Future[Tensor]"]]  # state and hook, as for DDP.register_comm_hook


def prepare(
    ddp_model: DistributedDataParallel, *, check_flags: bool = True, exact: bool = False, comm_hook: CommHook | None = None
) -> "Prepared":
    """Makes DDP send only gradients that were computed. Call this once, after wrapping, before the first backward.

    For a skipped weight nothing is sent, and ``grad`` is None after backward, as in one process. For a weight with ``rows``
    the chosen rows are sent; where the sparse form is asked for, ``grad`` is that after a synchronised backward (under
    ``no_sync`` it is dense). A weight that some other module shares, or that a parametrization computes, is sent whole.
    ``attach`` the policy to the optimizer as well.

    ``TopK`` chooses the same rows in all processes: by the scores of the step before, or of all its micro-batches, added up
    over the processes once, before the first forward after a synchronised backward, in one tensor for all layers. The rows
    then stay until the next synchronised backward. The first step has no scores, and takes the rows whose weights have the
    largest sums of magnitudes. ``score="random"``: drawn from one generator that all processes share. A layer's own plan
    is back in place after each forward.

    Works with ``find_unused_parameters`` (of a weight that no process used, the chosen rows are zeros),
    ``gradient_as_bucket_view``, ``no_sync``, and ``static_graph`` if each weight gets a dense gradient in the first
    iteration; a checkpointed part of the model needs ``use_reentrant=False``. ``join`` raises in forward.

    Args:
        ddp_model: a ``DistributedDataParallel`` around a model with converted layers.
        check_flags: compare a hash of each layer's plan over the processes before each forward with
            gradients: one small all_gather that waits. Without it, flags that differ make gradients wrong, or hang.
        exact: ``TopK`` rows by the scores of the step itself, added up inside backward on a process group of its own: backward
            then waits for all processes once per layer. Not with ``find_unused_parameters``; under ``torch.compile`` such a
            layer runs in eager mode, and with ``fullgraph=True`` that is an error.
        comm_hook: ``(state, hook)`` that you would have registered, called with what has to be sent: a bucket with the methods
            of ``GradBucket``, of a size that changes with the flags. None: the average over the processes.

    Returns:
        An object that carries the state of the row choice: ``state_dict()`` and ``load_state_dict()``.

    Raises:
        TypeError, ValueError: no DDP, no converted layer, one that is prepared already, a DDP or hook that this does not work
            with, by name. RuntimeError: another process has other layers.
    """
    _refuse(ddp_model, exact, comm_hook)
    return Prepared(ddp_model, check_flags, exact, comm_hook)


class Prepared:
    """What :func:`prepare` returns: it changes plans around each forward, is DDP's hook, and holds the choice of rows."""

    def __init__(
        self, ddp_model: DistributedDataParallel, check_flags: bool, exact: bool, comm_hook: CommHook | None = None
    ) -> None:
        self.layers = skippable_layers(ddp_model.module)
        self.group, self.device = ddp_model.process_group, ddp_model.device
        flags.check_names(list(self.layers), self.group)
        self.checks = check_flags
        self.lagged = LaggedRows(self.layers, self.group, self.device)
        ranks = dist.get_process_group_ranks(self.group)
        self.exact_group = dist.new_group(ranks, use_local_synchronization=True) if exact else None
        self.reduce = hook.average(self.group) if comm_hook is None else _called(comm_hook)
        self.shares, self.share_of = _shares(ddp_model, self.layers)
        self.replaced: dict[str, Plan] = {}  # the layers' own plans, during a forward
        self.without: list[Parameter] = []  # gradients that DDP would make zeros
        self.reduced = False  # whether gradients have been reduced since the last forward
        ddp_model.register_comm_hook(self, _on_bucket)
        ddp_model._wuskern_prepared = self  # type: ignore[assignment]
        ddp_model.register_forward_pre_hook(self._before_forward, prepend=True)
        ddp_model.register_forward_hook(self._after_forward, always_call=True)

    # ---- forward ----------------------------------------------------------------------------------------------------

    @_disable_dynamo
    def _before_forward(self, ddp_model: Any, _: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if ddp_model._join_config.enable:
            raise RuntimeError("join: expected none around a model of wuskern.distributed.prepare, whose processes go in step")
        if self.checks:
            flags.compare(self.layers, self.group, self.device)
        with torch.no_grad():
            self._next_rows()
            for share in self.shares.values():
                share.make_dense()
            self._install(ddp_model)

    def _next_rows(self) -> None:
        if self.reduced:
            self.lagged.close()
            for share in self.shares.values():
                share.begin()
            self.reduced = False

    def _install(self, ddp_model: Any) -> None:
        plans = {name: layer.plan.restricting(layer.units, many_tokens) or DENSE for name, layer in self.layers.items()}
        if ddp_model.static_graph and not ddp_model._static_graph_delay_allreduce_enqueued:
            self._refuse_missing()
        by_scores = {name: p.rows for name, p in plans.items() if isinstance(p.rows, TopK) and not p.skip}
        self.replaced = {name: self.layers[name].plan for name in by_scores}
        chosen = self.lagged.choose(by_scores) if self.exact_group is None else {}
        for name, top_k in by_scores.items():
            if name in chosen:
                plans[name] = plans[name].replace(rows=chosen[name].rows, observer=chosen[name].observer)
            else:
                observer = _Agreed(plans[name].observer, self._agreement(name, top_k))
                plans[name] = plans[name].replace(rows=top_k, observer=observer)
            self.layers[name].plan = plans[name]
        for name, share in self.share_of.items():
            if not plans[name].skip:
                _add(share, plans[name], self.layers[name].units.transposed)

    def _refuse_missing(self) -> None:
        """Refuses a skip in the first iteration, after which DDP sends only those gradients that there were in it."""
        for name, layer in self.layers.items():
            if layer.skip:
                raise RuntimeError(
                    "static_graph: expected a first iteration in which each weight gets a gradient, got skip of "
                    f"{name or 'the model itself'}"
                )

    def _agreement(self, name: str, top_k: TopK) -> Callable[[Tensor], Tensor]:
        out, groups = self.layers[name].units.out, self.layers[name].units.groups
        share = None if self.layers[name].units.transposed else self.share_of.get(name)

        def agree(scores: Tensor) -> Tensor:
            if top_k.score == "random":
                dist.broadcast(scores, dist.get_global_rank(self.exact_group, 0), self.exact_group)  # type: ignore[arg-type]
            else:
                dist.all_reduce(scores, group=self.exact_group)
            if share is not None:
                share.rows.append(ops.select_rows(scores, top_k.count(out, groups), top_k.block, groups))
            return scores

        return agree

    @_disable_dynamo
    def _after_forward(self, *_: Any) -> None:
        for name, plan in self.replaced.items():
            self.layers[name].plan = plan
        self.replaced = {}

    # ---- backward ---------------------------------------------------------------------------------------------------

    def on_bucket(self, bucket: hook.Bucket) -> "Future[Tensor]":
        self.without += [p for p in bucket.parameters() if p in self.shares and self._missing(self.shares[p])]
        if bucket.is_last():
            # DDP queues its own work for the end of backward after this: what has to follow that is queued from in there.
            queue = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            queue(lambda: queue(self._after_backward))
        return hook.send(bucket, self.shares, self.reduce)

    def _missing(self, share: Share) -> bool:
        return share.nothing and share.weight.grad is None

    def _after_backward(self) -> None:
        for parameter in self.without:
            parameter.grad = None
        for share in self.shares.values():
            if any(self.layers[name].is_sparse for name in share.names):
                share.make_sparse()
        self.without, self.reduced = [], True

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The scores by which ``TopK`` rows are chosen next, and the generator of random ones: tensors. Call it between steps,
        in all processes at once: the scores of the last step are added up here."""
        self._next_rows()
        return self.lagged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for a state of other layers."""
        self.lagged.load_state_dict(state)

    def __reduce__(self) -> NoReturn:
        raise TypeError("ddp_model: a prepared one cannot be copied or pickled; copy ddp_model.module")


def _on_bucket(state, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations
    return state.on_bucket(bucket)


class _Agreed(Observer):
    """A policy's observer, if there is one, in a forward of which all processes agree on the scores."""

    only_eager = True

    def __init__(self, policy: Observer | None, agree: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.policy, self.agree = policy, agree

    def ranked(self, scores: Tensor) -> Tensor:
        return self.agree(scores if self.policy is None else self.policy.ranked(scores))

    def tell(self, scores: Tensor | None, chosen: Tensor | None, home: Tensor | None) -> None:
        if self.policy is not None:
            self.policy.tell(scores, chosen, home)


def _add(share: Share, plan: Plan, transposed: bool) -> None:
    """Adds to a share what a forward with this plan trains along dimension 0 of the weight, which are the columns of one that
    is ``transposed``; rows that all processes agree on come in backward."""
    first = plan.columns if transposed else plan.rows
    if isinstance(first, Rows | Columns):
        if not share.rows or share.rows[-1] is not first.index:
            share.rows.append(first.index)
    elif not isinstance(first, TopK):
        share.dense = True


def _shares(
    ddp_model: DistributedDataParallel, layers: dict[str, SkippableLayer]
) -> tuple[dict[Parameter, Share], dict[str, Share]]:
    """Shares by weight, and by the names of its layers: for weights that belong to converted layers alone, as parameters."""
    names = {layer: name for name, layer in layers.items()}
    shares: dict[Parameter, Share] = {}
    share_of: dict[str, Share] = {}
    for weight, owners in weight_owners(ddp_model.module, layers):
        if all(owner._parameters.get("weight") is weight for owner in owners):
            shares[weight] = Share([names[owner] for owner in owners], weight)
            share_of |= {names[owner]: shares[weight] for owner in owners}
    return shares, share_of


def _called(comm_hook: CommHook) -> hook.Reduce:
    state, function = comm_hook
    return lambda bucket: function(state, bucket)


def _refuse(ddp_model: DistributedDataParallel, exact: bool, comm_hook: CommHook | None) -> None:
    if not isinstance(ddp_model, DistributedDataParallel):
        raise TypeError(f"ddp_model: expected a DistributedDataParallel, got {type(ddp_model).__name__}")
    if hasattr(ddp_model, "_wuskern_prepared"):
        raise ValueError("ddp_model: expected one that is not prepared yet")
    if ddp_model._comm_hooks:
        name = getattr(ddp_model._comm_hooks[0][0], "__qualname__", "one")
        raise ValueError(
            f"ddp_model: expected one without a communication hook, got {name}: give it as comm_hook=(state, hook) instead "
            "(DDP takes one hook, and mixed_precision brings its own)"
        )
    if ddp_model._use_python_reducer:
        raise ValueError("ddp_model: expected DDP's own reducer, got optimize_ddp='python_reducer'")
    if len(ddp_model._delay_all_reduce_params) > 0:
        raise ValueError("ddp_model: expected no delay_all_reduce_named_params, which bypass communication hooks")
    if exact and ddp_model.find_unused_parameters:
        raise ValueError("exact: expected False with find_unused_parameters, since backward waits for each layer")
    if comm_hook is not None and type(comm_hook[0]).__name__ == "PowerSGDState":
        raise ValueError("comm_hook: expected a hook that remembers nothing of a bucket's size, got PowerSGD")

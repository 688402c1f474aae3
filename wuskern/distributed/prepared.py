"""What ``prepare`` puts before each forward of DDP, into its communication hook, and after its backward."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import all of the compiler now
from torch.autograd import Variable
from torch.futures import Future
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from wuskern.choices import DENSE, Parts, Plan, TopColumns
from wuskern.common.arguments import whole
from wuskern.distributed import flags, hook
from wuskern.distributed.exact import Exact
from wuskern.distributed.lagged import Key, Lagged
from wuskern.distributed.shares import Share
from wuskern.distributed.sides import chosen_by_forward
from wuskern.modules import SkippableLayer, many_tokens, skippable_layers, weight_owners

CommHook = tuple[Any, Callable[[Any, Any], "Future[Tensor]"]]  # state and hook, as for DDP.register_comm_hook


def prepare(
    ddp_model: DistributedDataParallel,
    *,
    check_flags: bool = True,
    exact: bool = False,
    every: int = 1,
    comm_hook: CommHook | None = None,
) -> "Prepared":
    """Makes DDP send only gradients that were computed. Call this once, after wrapping, before the first backward.

    For a skipped weight nothing is sent, and ``grad`` is None after backward, as in one process. For a weight with ``rows`` the
    chosen rows are sent; where the sparse form is asked for, ``grad`` is that after a synchronised backward (under
    ``no_sync`` it is dense). For a weight with ``columns`` the chosen columns are sent, and with both the block where they
    meet; for micro-batches that train different parts, the smallest block that holds all of these. A weight that some other
    module shares, or that a parametrization computes, is sent whole. ``attach`` the policy to the optimizer as well.

    Little goes in few messages: what is to be sent of one of DDP's buckets waits for that of the next ones, until it is as much
    as a bucket (``bucket_cap_mb``; 1 MiB for the first message).

    ``TopK`` and ``TopColumns`` choose the same rows and columns in all processes: by the scores of the step before, or of all
    its micro-batches, added up over the processes once. They travel with the gradients, in the last message of a synchronised
    backward; with gradients of another dtype, or a ``comm_hook``, in one of their own before the next forward. The choice then
    stays until the next synchronised backward. The first step has no scores, and takes the rows whose weights have the largest
    sums of magnitudes, the columns whose weights have the largest sums of squares. ``score="weight"`` goes by the weights of
    each step, and ``score="random"`` is drawn from one generator that all processes share: the former takes a message before
    forward. A layer's own ``plan`` stays as it is.

    Works with ``find_unused_parameters`` (of a weight that no process used, what is chosen is zeros),
    ``gradient_as_bucket_view``, ``no_sync``, and ``static_graph`` if each weight gets a dense gradient in the first
    iteration; a checkpointed part of the model needs ``use_reentrant=False``. ``join`` raises in forward.

    Args:
        ddp_model: a ``DistributedDataParallel`` around a model with converted layers.
        check_flags: compare a hash of each layer's plan over the processes before each forward with
            gradients: one small all_gather that waits. Without it, flags that differ make gradients wrong, or hang.
        exact: ``TopK`` rows, and ``TopColumns`` by the input, by the scores of the step itself, added up inside backward and
            forward on a process group of its own: these then wait for all processes once per layer. Not with
            ``find_unused_parameters``; under ``torch.compile`` such a layer runs in eager mode, and with ``fullgraph=True``
            that is an error.
        every: synchronised backwards for which such a choice stays; the next one is by the scores of all of them. ``exact``
            has no part in it.
        comm_hook: ``(state, hook)`` that you would have registered, called with what has to be sent: a bucket with the methods
            of ``GradBucket``, of a size that changes with the flags. None: the average over the processes.

    Returns:
        An object that carries the state of the choices: ``state_dict()`` and ``load_state_dict()``.

    Raises:
        TypeError, ValueError: no DDP, no converted layer, one that is prepared already, a DDP or hook that this does not work
            with, by name. RuntimeError: another process has other layers.
    """
    _refuse(ddp_model, exact, comm_hook)
    whole("every", every)
    return Prepared(ddp_model, check_flags, exact, comm_hook, every)


class Prepared:
    """What :func:`prepare` returns: it sets what forward goes by, is DDP's hook, and holds the choice of rows and columns."""

    def __init__(
        self,
        ddp_model: DistributedDataParallel,
        check_flags: bool,
        exact: bool,
        comm_hook: CommHook | None = None,
        every: int = 1,
    ) -> None:
        self.layers = skippable_layers(ddp_model.module)
        self.group, self.device = ddp_model.process_group, ddp_model.device
        flags.check_names(list(self.layers), self.group)
        self.checks = check_flags
        self.lagged = Lagged(self.layers, self.group, self.device, every)
        self.exact = Exact(self.group, self.device) if exact else None
        self.shares, self.share_of = _shares(ddp_model, self.layers)
        reduce = hook.average(self.group) if comm_hook is None else _called(comm_hook)
        self.sender = hook.Sender(self.shares, reduce, ddp_model.bucket_bytes_cap)
        self.carries = comm_hook is None  # whether scores travel with gradients: a hook of the user's own may round them
        self.following: set[str] = set()  # layers whose forward goes by another plan than their own
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
        self.sender.forget()
        with torch.no_grad():
            self._next_choices()
            for share in self.shares.values():
                share.make_dense()
            self._install(ddp_model)

    def _next_choices(self) -> None:
        if self.reduced:
            self.lagged.reduced()
            for share in self.shares.values():
                share.begin()
            self.reduced = False

    def _install(self, ddp_model: Any) -> None:
        plans = {name: layer.plan.restricting(layer.units, many_tokens) or DENSE for name, layer in self.layers.items()}
        if ddp_model.static_graph and not ddp_model._static_graph_delay_allreduce_enqueued:
            self._refuse_missing()
        by_forward = {(name, part): choice for name, p in plans.items() for part, choice in chosen_by_forward(p).items()}
        in_step = {key for key, choice in by_forward.items() if self.exact is not None and self.exact.takes(choice)}
        chosen = self.lagged.choose({key: choice for key, choice in by_forward.items() if key not in in_step})
        self._unfollow()
        for name in dict.fromkeys(name for name, _ in by_forward):
            parts: Parts = {}
            for key in ((name, "rows"), (name, "columns")):
                if key in by_forward:
                    parts |= self._in_step(key, plans[name]) if key in in_step else chosen[key]
            plans[name] = plans[name].replace(**parts)
            self.following.add(name)
            self.layers[name].follow(plans[name])
        for name, share in self.share_of.items():
            if not plans[name].skip:
                share.add(plans[name], self.layers[name].units.transposed)

    def _in_step(self, key: Key, plan: Plan) -> Parts:
        (name, part), units = key, self.layers[key[0]].units
        share = self.share_of.get(name)
        trained = None if share is None else share.along(part, units.transposed)
        assert self.exact is not None
        choose = self.exact.rows if part == "rows" else self.exact.columns
        return choose(plan, units, trained)

    def _refuse_missing(self) -> None:
        """Refuses a skip in the first iteration, after which DDP sends only those gradients that there were in it."""
        for name, layer in self.layers.items():
            if layer.skip:
                raise RuntimeError(
                    "static_graph: expected a first iteration in which each weight gets a gradient, got skip of "
                    f"{name or 'the model itself'}"
                )

    @_disable_dynamo
    def _after_forward(self, *_: Any) -> None:
        # A checkpointed forward runs again in backward, and has to keep the same columns.
        self._unfollow([name for name in self.following if not isinstance(self.layers[name].columns, TopColumns)])

    def _unfollow(self, names: Iterable[str] | None = None) -> None:
        """Has layers go by their own plans again; None: all."""
        for name in list(self.following) if names is None else names:
            self.following.remove(name)
            self.layers[name].follow(None)

    # ---- backward ---------------------------------------------------------------------------------------------------

    def on_bucket(self, bucket: hook.Bucket) -> "Future[Tensor]":
        self.without += [p for p in bucket.parameters() if p in self.shares and self._missing(self.shares[p])]
        if bucket.is_last():
            # DDP queues its own work for the end of backward after this: what has to follow that is queued from in there.
            queue = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            queue(lambda: queue(self._after_backward))
        return self.sender.send(bucket, self._riders(bucket) if self.carries and bucket.is_last() else ())

    def _riders(self, bucket: hook.Bucket) -> list[hook.Sent]:
        trained = {name for name, share in self.share_of.items() if share.weight.requires_grad}
        return self.lagged.riders(bucket.buffer().dtype, trained)

    def _missing(self, share: Share) -> bool:
        return share.nothing and share.weight.grad is None

    def _after_backward(self) -> None:
        self._unfollow()
        for parameter in self.without:
            parameter.grad = None
        for share in self.shares.values():
            if any(self.layers[name].is_sparse for name in share.names):
                share.make_sparse()
        self.without, self.reduced = [], True

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The scores by which rows and columns are chosen next, and the generator of random ones: tensors. Call it between
        steps, in all processes at once: scores that have not travelled yet are added up here, and the choices of now end."""
        self._next_choices()
        if self.lagged.reductions:
            self.lagged.close()
        return self.lagged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for a state of other layers."""
        self.lagged.load_state_dict(state)

    def __reduce__(self) -> NoReturn:
        raise TypeError("ddp_model: a prepared one cannot be copied or pickled; copy ddp_model.module")


def _on_bucket(state, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations
    return state.on_bucket(bucket)


def _shares(
    ddp_model: DistributedDataParallel, layers: dict[str, SkippableLayer]
) -> tuple[dict[Parameter, Share], dict[str, Share]]:
    """Shares by weight, and by the names of its layers: for weights that belong to converted layers alone, as parameters."""
    names = {layer: name for name, layer in layers.items()}
    shares: dict[Parameter, Share] = {}
    share_of: dict[str, Share] = {}
    for weight, owners in weight_owners(ddp_model.module, layers):
        if all(owner._parameters.get("weight") is weight for owner in owners):
            groups = {owner.units.groups for owner in owners}
            shares[weight] = Share([names[owner] for owner in owners], weight, groups.pop() if len(groups) == 1 else None)
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

"""Blocks of layers in turn: BAdam (Luo et al.; NeurIPS 2024, arXiv 2404.02827) and LISA (Pan et al.; NeurIPS 2024, 2403.17919).

BAdam trains one block of a transformer at a time, for some steps of Adam, whose state begins anew with each block; the blocks
take turns, in an order that is drawn anew for each round (or the same, forwards or backwards). LISA draws some blocks at random
for every period; embedding and head always train. What does not train keeps its values, and of its weights no gradient and no
optimizer state are needed.

Ours: blocks are found by name; by default biases and norms of the other blocks go on training, which costs next to nothing; and
both methods are one policy:

- BAdam: ``Blocks(model, steps=50, others="still")``.
- LISA: ``Blocks(model, steps=20, train=2, order="sampled", state="keep", others="still")``.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from wuskern.common import states
from wuskern.common.arguments import one_of, whole
from wuskern.modules import plain_name
from wuskern.policies.base import Policy, Wants

Order = Literal["shuffled", "sampled", "ascending", "descending"]
State = Literal["drop", "keep"]
Others = Literal["skip", "still"]


def block_of(name: str) -> str:
    """The part of a module's name up to its first number, such as "encoder.layer.3"; "" where it has none."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""


@dataclass(eq=False, kw_only=True)
class Blocks(Policy):
    """Trains the weights of some blocks of layers for ``steps`` optimizer steps, and then of others. A block is all that has
    the same name up to its first number ("encoder.layer.3"); layers without a number, such as a head, always train. Call
    ``after_step`` after each optimizer step.

    Args:
        model: a model with converted layers, of two blocks or more.
        steps: optimizer steps between two changes. train: blocks that train at a time, fewer than there are.
        order: "shuffled": each block once in a round, whose order is drawn anew; "sampled": drawn for each period from all;
            "ascending" and "descending": in the order of ``named_modules``, or from behind.
        state: what the optimizer knows of a block's parameters when it stops to train: "drop", as BAdam, or "keep".
        others: what of the other blocks: "skip", biases and whatever has no weight matrix train on; "still", nothing moves.
        dense: names of converted layers, or of modules, that always train, beside those without a number.
        seed: of a generator of its own; all processes give the same.

    Attributes:
        blocks: names of the blocks, in the order of ``named_modules``. training: those that train now.

    Raises:
        ValueError, TypeError: an argument out of its range, or a model with too few blocks.
    """

    name = "blocks"
    source = "Luo et al.: BAdam. arXiv 2404.02827; Pan et al.: LISA. arXiv 2403.17919; both NeurIPS 2024"
    reported = (
        "BAdam and LISA: fine-tuning of large language models in about the memory of LoRA, at better quality; time and memory "
        "are saved on what does not train. Here a small network trains from scratch."
    )
    needs = ("after_step", "attach")
    trial = "steps=1"

    steps: int = 50
    train: int = 1
    order: Order = "shuffled"
    state: State = "drop"
    others: Others = "skip"
    dense: Collection[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps)
        whole("train", self.train)
        whole("seed", self.seed, 0)
        one_of("order", self.order, get_args(Order))
        one_of("state", self.state, get_args(State))
        one_of("others", self.others, get_args(Others))
        always = self.names_or_last(self.dense) if self.dense else ()
        self._block_of_layer = {name: block_of(name) for name in self.layers if block_of(name) and name not in always}
        self.blocks = tuple(dict.fromkeys(self._block_of_layer.values()))
        if self.train >= len(self.blocks):
            raise ValueError(f"train: expected fewer than the {len(self.blocks)} blocks of the model, got {self.train}")
        self._parameters = self._by_block()
        self.generator = torch.Generator().manual_seed(self.seed)
        self.done = 0  # steps of this period
        self.waiting: list[str] = []  # blocks that this round has still to train
        self.training: tuple[str, ...] = ()
        self._optimizer: Optimizer | None = None
        self._begin_period()
        self.apply()

    def _by_block(self) -> dict[str, list[Parameter]]:
        """The parameters of each block; one that something outside of the block shares is nobody's."""
        always = self.layers.keys() - self._block_of_layer.keys()
        owners: dict[Parameter, set[str]] = {}
        for path, module in self.model.named_modules():
            name = plain_name(self.model, path)
            block = "" if name in always else block_of(name)
            for parameter in module.parameters(recurse=False):
                owners.setdefault(parameter, set()).add(block)
        return {block: [p for p, blocks in owners.items() if blocks == {block}] for block in self.blocks}

    def _begin_period(self) -> None:
        """Takes the next blocks of the round, and of a new one where that ends; none twice in one period."""
        if self.order == "sampled":
            self.waiting = []
        chosen: list[str] = []
        while len(chosen) < self.train:
            if set(self.waiting) <= set(chosen):
                self.waiting += self._round()
            chosen.append(next(block for block in self.waiting if block not in chosen))
            self.waiting.remove(chosen[-1])
        self.training = tuple(chosen)

    def _round(self) -> list[str]:
        if self.order == "ascending":
            return list(self.blocks)
        if self.order == "descending":
            return list(self.blocks[::-1])
        return [self.blocks[i] for i in torch.randperm(len(self.blocks), generator=self.generator)]

    def trains_now(self, name: str) -> bool:
        """Whether the converted layer of that name is of a block that trains now, or of none."""
        return self._block_of_layer.get(name) in (None, *self.training)

    def wants(self, name: str) -> Wants:
        return {"skip": not self.trains_now(name)}

    def frozen_parameters(self) -> list[Parameter]:
        """The parameters of the other blocks, where nothing of them is to move."""
        if self.others == "skip" or not self.on:
            return []
        return [p for block, parameters in self._parameters.items() if block not in self.training for p in parameters]

    def watch(self, optimizer: Optimizer) -> None:
        super().watch(optimizer)
        self._optimizer = optimizer

    def on_step_end(self) -> None:
        """Counts an optimizer step; after ``steps`` of them other blocks train."""
        self.done += 1
        if self.done == self.steps:
            before, self.done = self.training, 0
            self._begin_period()
            if self.state == "drop":
                self._drop(set(before) - set(self.training))
            self.apply()

    def _drop(self, blocks: Collection[str]) -> None:
        """Clears what the optimizer remembers of what no longer moves in these blocks: their weights, or all of them."""
        weights = {layer.weight for name, layer in self.layers.items() if self._block_of_layer.get(name) in blocks}
        for parameter in (p for block in blocks for p in self._parameters[block]):
            if self._optimizer is not None and (self.others == "still" or parameter in weights):
                self._optimizer.state.pop(parameter, None)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and the generator: safe for ``torch.load(weights_only=True)``. Between optimizer steps."""
        blocks = {"training": list(self.training), "waiting": list(self.waiting)}
        return {"policy": type(self).__name__, "done": self.done, **blocks, "generator": self.generator.get_state()}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.count("done", state["done"], self.steps - 1)
        for what, length in (("training", self.train), ("waiting", None)):
            states.items(what, state[what], length)
            names = [name for name in state[what] if name in self.blocks]
            if len(set(names)) < len(state[what]):
                states.refuse(f"{what}, names among {list(self.blocks)}, each once", states.said(state[what]))
        states.generator(state["generator"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, and sets the layers' flags. Raises ``ValueError`` for what is no such state, and
        for that of a model with other blocks; nothing has changed then."""
        self.check_state(state)
        self.done = state["done"]
        self.training, self.waiting = tuple(state["training"]), list(state["waiting"])
        self.generator.set_state(state["generator"].cpu())
        self.apply()

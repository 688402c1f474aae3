"""A race of the ways to train: each is verified, recorded once, and then timed in turn, as far as the time goes."""

import statistics
import time
from collections.abc import Mapping

from wuskern.common.memory import peak_bytes
from wuskern.modules import SkippableLayer
from wuskern.profile.check import Checker
from wuskern.profile.layer_clock import LayerClock
from wuskern.profile.recorded import Recorded, recorded
from wuskern.profile.result import Measured
from wuskern.profile.step import Step, fresh
from wuskern.profile.variants import DENSE_NAME, SKIP_NAME, Way, Zeros, frozen_ways, partial_ways

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
LAYERS = "seconds of each layer"
DENSE_WAY = Way(DENSE_NAME, "", {})


class Race:
    """All measurements of one profile.

    Args:
        step: what is measured. end: when the time is over, by ``time.perf_counter``.

    Attributes:
        rounds: how often each way was timed. did_not_fit: what the time was too short for. notes: what else there is to say.
    """

    def __init__(self, step: Step, end: float) -> None:
        self.step, self.end = step, end
        self.did_not_fit: list[str] = []
        self.notes: list[str] = []
        self.seconds: dict[str, list[float]] = {}
        self.of_layers: dict[str, list[dict[str, tuple[float, float]]]] = {DENSE_NAME: [], SKIP_NAME: []}
        self._timed: list[Way] = []
        self._recorded: dict[str, Recorded] = {}
        self._zeros = Zeros()

    @property
    def rounds(self) -> int:
        return len(self.seconds.get(DENSE_NAME, []))

    def left(self) -> float:
        """The seconds until the time is over."""
        return self.end - time.perf_counter()

    def stock(self) -> None:
        """Runs a step of the model as it came: its gradients are what all others are compared with. They stay until the end,
        as an optimizer's state would: with a hole in the heap in their place, the gradients of dense steps would cost fewer
        page faults than in a training, and a skip would save less.
        """
        began = time.perf_counter()
        self.step.seeded().run()
        self.once = time.perf_counter() - began
        names = {parameter: name for name, parameter in self.step.model.named_parameters()}
        self.checker = Checker(self.step.gradients(), names, self.step.rounds)
        if not any(grad is not None for grad in self.checker.stock.values()):
            raise ValueError("loss: expected one by which a parameter of the model gets a gradient, got none")

    def run(self, layers: Mapping[str, SkippableLayer]) -> None:
        """Measures dense training and, as far as there is time, all else."""
        self.layers = layers
        self.clock = LayerClock(self.step.model, layers, self.step.device, self.step.clock)
        began = time.perf_counter()
        self.step.seeded().run()
        if self.checker.same_as_stock(self.step.gradients()):
            self.checker.repeats = False
            self.notes.append(
                "Two steps from the same random numbers gave different gradients, so that only their presence was verified."
            )
        once = min(self.once, time.perf_counter() - began)
        peak_bytes(lambda: None, self.step.device)  # torch's profiler takes seconds to begin, once in a process
        began = time.perf_counter()
        self._recorded[DENSE_NAME] = recorded(self.step)
        self._timed.append(DENSE_WAY)
        record = time.perf_counter() - began
        if layers:
            self._admit_all(once, record)
        self._time_all(once)

    # ---- before timing ----------------------------------------------------------------------------------------------

    def _admit_all(self, once: float, record: float) -> None:
        partial = partial_ways(self.layers)
        self._admit_some(partial[:2], once, record)
        frozen = self._frozen(once, record)
        self._admit_some(frozen[:1], once, record)
        self._admit_some(partial[2:], once, record)
        self._admit_some(frozen[1:], once, record)

    def _admit_some(self, some: list[Way], once: float, record: float) -> None:
        for way in some:
            if self.left() < once + record + self._rounds_with_one_more(once):
                self.did_not_fit.append(way.name)
            else:
                self._admit(way)

    def _rounds_with_one_more(self, once: float) -> float:
        """The seconds of the fewest rounds, those in which layers are timed included."""
        return LEAST_ROUNDS * once * (len(self._timed) + 3)

    def _frozen(self, once: float, record: float) -> list[Way]:
        if self.left() < 5 * once + record + self._rounds_with_one_more(once):
            self.did_not_fit.append("frozen prefix")
            return []
        try:
            return frozen_ways(self.step.model, fresh(self.step.batch))
        except Exception as error:  # what Prefix refuses, or the model itself when it evaluates
            self.notes.append(f"frozen prefix: {(str(error).splitlines() or [type(error).__name__])[0]}.")
            return []

    def _admit(self, way: Way) -> None:
        """Has a way timed if its gradients are what it says; its first step is also what warms it up."""
        with way.on(self.layers, self._zeros):
            self.step.seeded().run()
        gradients = self.step.gradients()
        if not any(grad is not None for grad in gradients.values()):
            self.notes.append(f"{way.name}: leaves nothing to train (no bias, no norm, nothing outside of the layers).")
            return
        if error := self.checker.obstacle(way, self.step.model, self.layers, gradients):
            self.notes.append(f"{way.name}: not timed, its gradients are wrong, please report it: {error}.")
            return
        del gradients
        with way.on(self.layers):  # without zeros that are there already: they are part of its peak
            self._recorded[way.name] = recorded(self.step)
        self._timed.append(way)

    def _is_timed(self, name: str) -> bool:
        return any(way.name == name for way in self._timed)

    # ---- timing -----------------------------------------------------------------------------------------------------

    def _time_all(self, once: float) -> None:
        probed = [way for way in self._timed if way.name in self.of_layers] if self._is_timed(SKIP_NAME) else []
        if probed and self.left() < LEAST_ROUNDS * once * (len(self._timed) + len(probed)):
            self.did_not_fit.append(LAYERS)
            probed = []
        longest = 0.0
        for turn in range(MOST_ROUNDS):
            if turn and self.left() < longest:
                break
            began = time.perf_counter()
            self._round(turn, probed)
            longest = max(longest, time.perf_counter() - began)
        if len(self._timed) > 1 and self.rounds < LEAST_ROUNDS:
            self.notes.append(f"There was time for {self.rounds} rounds alone: the times are rough.")

    def _round(self, turn: int, probed: list[Way]) -> None:
        first = turn % len(self._timed)
        for way in self._timed[first:] + self._timed[:first]:
            with way.on(self.layers, self._zeros):
                self.seconds.setdefault(way.name, []).append(self.step.run())
        for way in probed[turn % 2 :] + probed[: turn % 2]:
            with way.on(self.layers):
                self._probe(way)

    def _probe(self, way: Way) -> None:
        with self.clock.on():
            self.step.run()
        self.of_layers[way.name].append(self.clock.seconds())

    # ---- what was found ---------------------------------------------------------------------------------------------

    def measured(self) -> tuple[Measured, ...]:
        """The ways that were timed, dense first."""
        dense = self.seconds[DENSE_NAME]
        return tuple(self._measured(way, dense) for way in sorted(self._timed, key=_order))

    def _measured(self, way: Way, dense: list[float]) -> Measured:
        mine, of = self.seconds[way.name], self._recorded[way.name]
        low, middle, high = statistics.quantiles(mine, n=4, method="inclusive") if len(mine) > 1 else mine * 3
        ratio = statistics.median(a / b for a, b in zip(mine, dense, strict=True))
        return Measured(way.name, way.methods, middle, low, high, ratio, of.kept, of.peak, of.flops, left_dense=way.left_dense)


def _order(way: Way) -> tuple[int, int]:
    """The place in the table: dense, skip, rows and columns, frozen ones by depth; what is measured first is another matter."""
    kinds = (way.name == DENSE_NAME, way.name == SKIP_NAME, way.prefix is None, True)
    return kinds.index(True), way.depth

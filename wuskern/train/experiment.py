"""An experiment of several methods and seeds: the runs of a seed take turns epoch by epoch, so that all meet the same machine.

Then comes each method's control: dense training over as many epochs as take the method's time, its schedule rescaled to them.
"""

import contextlib
import copy
import functools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wuskern.train import checkpoint, processes, results, summary
from wuskern.train.controls import epochs_in_the_time_of
from wuskern.train.data import Data
from wuskern.train.log import Log
from wuskern.train.loop import Run
from wuskern.train.methods import DENSE, Method
from wuskern.train.output import FRONT, PICTURE, RESULTS
from wuskern.train.picture import draw, draw_front
from wuskern.train.records import Epoch, Record
from wuskern.train.settings import Settings

WARM_UP_STEPS = 12


@dataclass(frozen=True)
class Group:
    """Runs that take turns, epoch by epoch. ``control_of``: the methods whose control it is; empty where it is none."""

    seed: int
    methods: tuple[Method, ...]
    epochs: int
    control_of: tuple[str, ...] = ()


@dataclass
class Experiment:
    """An experiment: ``warm_up``, then ``run``, which trains all; ``out/results.json`` is valid after each round of epochs.

    ``checkpoint``: a file that ``resume`` can continue from, replaced after every round as well. ``identity`` tells an
    experiment from all others, even from those with the same arguments. Of several processes the first one writes and speaks.
    """

    settings: Settings
    methods: tuple[Method, ...]
    seeds: int
    data: Data
    out: Path
    arguments: dict[str, Any]
    checkpoint: Path | None = None
    say: Callable[[str], None] = tqdm.write
    finished: list[Record] = field(default_factory=list)  # the records of the groups that are done
    runs: list[Run] = field(default_factory=list)  # the runs of the group that is not
    measure_memory: bool = False
    log: Log = field(default_factory=lambda: Log(Path()))
    peaks: dict[str, int] = field(default_factory=dict)  # bytes of a step at the start, by method
    identity: str = field(default_factory=lambda: secrets.token_hex(16))
    files: dict[str, str] = field(default_factory=dict)  # checksums of the user's own, by the argument that names them
    state_bytes: int = 0  # what a checkpoint of all methods' runs takes; known after ``warm_up``

    def __post_init__(self) -> None:
        self.first = processes.rank() == 0
        if not self.first:
            self.say = lambda _: None
        # Dense first, which the others are compared with; a frozen run follows the run with WUS before it.
        self.methods = tuple(sorted(self.methods, key=lambda m: (m.label != DENSE, m.has("frozen"))))

    @functools.cached_property
    def data_checksum(self) -> int:
        return self.data.checksum()

    @property
    def records(self) -> list[Record]:
        return self.finished + [run.record for run in self.runs]

    @property
    def epochs_at_most(self) -> int:
        """The largest number of epochs that all runs together can take, those of controls included."""
        controls = len(self.methods) - 1 if self.methods[0].label == DENSE else 0
        return self.seeds * (len(self.methods) + controls) * self.settings.epochs

    def run(self) -> bool:
        """Trains what is left and reports. Returns False when Ctrl-C ended it early; what was done is then reported.

        Raises:
            NotWritten: a file could not be written. It is as it was a round before, and the others are up to date.
        """
        done = sum(len(record.epochs) for record in self.records)
        controls = sum(record.planned for record in self.finished if record.planned < self.settings.epochs)
        total = self.seeds * len(self.methods) * self.settings.epochs + controls
        for note in self.data.notes:
            self.say(note)
        try:
            self.log.begin(self.records)
            hidden = None if self.first else True  # None: where this is no terminal
            with (
                tqdm(total=total, initial=done, unit="epoch", disable=hidden) as bar,
                tqdm(unit="step", leave=False, disable=hidden) as steps,
            ):
                for group in self._groups():
                    self._train(group, bar, steps)
            complete = True
        except KeyboardInterrupt:
            self.say("interrupted: the results hold what was done")
            complete = False
        self._report(complete)
        self.log.close()
        return complete

    def warm_up(self) -> None:
        """Trains all methods for two short epochs, in both modes, and throws them away: no run then pays for the libraries'
        first calls, or for memory that the process did not have yet. Wrong arguments show here; nothing is written. With
        ``measure_memory`` each method then takes a step whose peak memory is measured."""
        runs = [Run(method, self.settings, self.data, seed=0) for method in self.methods]
        _try(runs)
        if self.checkpoint is not None:
            self.state_bytes = checkpoint.size(runs=[run.state_dict() for run in runs])
        for method in self.methods if self.measure_memory else ():
            with contextlib.closing(Run(method, self.settings, self.data, seed=0)) as run:
                self.peaks[method.label] = run.peak_bytes()

    # ---- what is left to train --------------------------------------------------------------------------------------

    def _groups(self) -> Iterator[Group]:
        """The groups that are not finished, in their order. Which controls a seed needs shows when its policies are done."""
        for seed in range(self.seeds):
            if not self._has(self.methods[0].label, seed, self.settings.epochs):
                yield Group(seed, self.methods, self.settings.epochs)
            for epochs, labels in self._controls(seed).items():
                if self._has(DENSE, seed, epochs):
                    continue
                if self.settings.schedule == "constant":  # the same training, only shorter
                    self.finished.append(Record(DENSE, seed, epochs, self._epochs(DENSE, seed)[:epochs]))
                else:
                    yield Group(seed, (Method(DENSE),), epochs, control_of=labels)

    def _has(self, policy: str, seed: int, planned: int) -> bool:
        return (policy, seed, planned) in {record.key for record in self.finished}

    def _epochs(self, policy: str, seed: int) -> list[Epoch]:
        key = policy, seed, self.settings.epochs
        return next(record.epochs for record in self.finished if record.key == key)

    def _controls(self, seed: int) -> dict[int, tuple[str, ...]]:
        """The controls of a seed: for each number of epochs the methods that take the time of so many dense ones."""
        controls: dict[int, tuple[str, ...]] = {}
        if self.methods[0].label == DENSE:
            for method in self.methods[1:]:
                epochs = epochs_in_the_time_of(self._epochs(method.label, seed), self._epochs(DENSE, seed))
                controls[epochs] = (*controls.get(epochs, ()), method.label)
        return controls

    def _train(self, group: Group, bar: "tqdm[Any]", steps: "tqdm[Any]") -> None:
        if group.control_of:
            bar.total += group.epochs
            self.say(
                f"seed {group.seed}: control, dense for {group.epochs} epochs: the time of {' and '.join(group.control_of)}"
            )
        self.runs = self.runs or self._start(group)
        for _ in range(len(self.runs[0].epochs), group.epochs):
            for run in self.runs:
                epoch = run.epoch(steps)
                bar.update()
                self.say(run.record.line(epoch))
            try:
                self._save(complete=False)
            finally:  # what one file cannot take, the other one has
                self.save_checkpoint()
        for run in self.runs:
            run.close()
        self.finished, self.runs = self.records, []

    def _start(self, group: Group) -> list[Run]:
        runs: list[Run] = []
        for method in group.methods:
            settings = replace(self.settings, epochs=group.epochs)
            leader = next((run for run in runs if run.method.has("wus")), None)
            runs.append(Run(method, settings, self.data, group.seed, leader))
        return runs

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        runs = [run.state_dict() for run in self.runs]
        if self.first:
            checkpoint.save(
                self.checkpoint,
                experiment=self.identity,
                arguments=self.arguments,
                files=self.files,
                data=self.data_checksum,
                finished=[record.state_dict() for record in self.finished],
                runs=runs,
            )

    def resume(self, state: dict[str, Any]) -> None:
        """Continues where a checkpoint of the same arguments was written.

        Whatever the file holds, it either trains on or is refused here: a copy is tried first.

        Raises:
            ValueError: the data have changed since, or the state is that of no such experiment.
        """
        if state["data"] != self.data_checksum:
            raise ValueError(f"expected the data of the interrupted run, got others from {self.data.name}")
        try:
            replace(self, finished=[], runs=[])._rehearse(copy.deepcopy(state))
        except ValueError:
            raise
        except Exception as error:  # a made-up state can raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"expected a state that training can continue from, got another ({reason})") from error
        self._take(state)

    def _rehearse(self, state: dict[str, Any]) -> None:
        """Takes a few steps from the state and makes a report, to see that both work."""
        self._take(state)
        _try(self.runs)
        rows = summary.summarise(self.records, self.data.y_test.numel())
        summary.table(rows)
        summary.verdict(rows, self.data.y_test.numel())

    def _take(self, state: dict[str, Any]) -> None:
        self.identity = state["experiment"]
        self.finished = [Record.from_state(record) for record in state["finished"]]
        self._check_finished()
        if not state["runs"]:
            return
        group = next(self._groups(), None)
        if group is None or len(state["runs"]) != len(group.methods):
            raise ValueError(f"expected the runs of {len(group.methods) if group else 0} methods, got {len(state['runs'])}")
        self.runs = self._start(group)
        for run, run_state in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(run_state)
        if len({len(run.epochs) for run in self.runs}) > 1:
            raise ValueError("expected runs that have taken turns, got some with more epochs than others")

    def _check_finished(self) -> None:
        """Refuses finished runs that are not all methods of a seed, or none, and controls."""
        epochs, keys = self.settings.epochs, {record.key for record in self.finished}
        begun = {seed for _, seed, _ in keys}
        wanted = {(method.label, seed, epochs) for method in self.methods for seed in begun}
        controls = {key for key in keys - wanted if key[0] == DENSE and key[2] < epochs}
        complete = all(record.complete for record in self.finished)
        if keys != wanted | controls or not begun <= set(range(self.seeds)) or not complete:
            raise ValueError(f"expected whole runs of {len(self.methods)} methods by seed, got {sorted(keys)}")

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _report(self, complete: bool) -> None:
        test_labels = self.data.y_test.numel()
        rows = summary.summarise(self.records, test_labels)
        if not rows:
            return
        try:
            self._save(complete)
            if self.first:
                title = f"{self.settings.model} on {self.data.name}"
                draw(self.out / PICTURE, title, self.records)
                draw_front(self.out / FRONT, title, rows)
        finally:  # shown even if the files cannot be written
            self.say("\n" + summary.table(rows))
            self.say(summary.legend(rows))
            if verdict := summary.verdict(rows, test_labels):
                self.say(verdict)
        self.say(f"results: {self.out / RESULTS}\npicture: {self.out / PICTURE}")

    def _save(self, complete: bool) -> None:
        if self.first:
            about = {"experiment": self.identity, "arguments": self.arguments, "files": self.files, "complete": complete}
            test_labels = self.data.y_test.numel()
            results.save(self.out / RESULTS, about, self.settings.device, test_labels, self.records, self.peaks)
            self.log.write(self.records, {run.record.key: run.losses for run in self.runs if run.epochs})


def _try(runs: list[Run]) -> None:
    """Trains all runs for two short epochs, in both modes: what cannot train shows. The runs are of no use afterwards."""
    with contextlib.ExitStack() as closing:
        for run in runs:
            closing.callback(run.close)
            run.limit = WARM_UP_STEPS
        for skip in (False, True):
            for run in runs:
                if run.built.wus is not None:
                    run.built.wus.skipping = skip
                    run.built.wus.apply()
                run.epoch()

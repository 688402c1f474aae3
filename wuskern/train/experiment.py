"""Several policies over several seeds: the runs of a seed take turns epoch by epoch, so that all meet the same machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from wuskern.train import results
from wuskern.train.data import Data
from wuskern.train.loop import POLICIES, Epoch, Run, Settings
from wuskern.train.picture import draw

RESULTS, PICTURE = "results.json", "accuracy.png"
WARM_UP_STEPS = 12


@dataclass
class Experiment:
    """``warm_up``, then ``run``, which trains everything and keeps ``out/results.json`` valid after every epoch."""

    settings: Settings
    policies: tuple[str, ...]
    seeds: int
    data: Data
    out: Path
    arguments: dict[str, Any]
    say: Callable[[str], None] = tqdm.write

    def run(self) -> bool:
        """Trains all runs and reports. Returns False when Ctrl-C ended it early; what was done is then reported."""
        runs: list[Run] = []
        try:
            with tqdm(total=self.seeds * len(self.policies) * self.settings.epochs, unit="epoch", disable=None) as bar:
                for seed in range(self.seeds):
                    self._run_seed(seed, runs, bar)
            complete = True
        except KeyboardInterrupt:
            self.say("interrupted: the results hold what was done")
            complete = False
        self._report(runs, complete)
        return complete

    def warm_up(self) -> None:
        """Two thrown-away short epochs of all policies at once, in both modes, with nothing written: no run then pays for
        the libraries' first calls, or for memory that the process did not have yet. Wrong arguments show here."""
        few = WARM_UP_STEPS * self.settings.batch
        data = replace(self.data, x_train=self.data.x_train[:few], y_train=self.data.y_train[:few])
        runs = [Run(policy, self.settings, data, seed=0) for policy in self.policies]
        for skip in (False, True):
            for run in runs:
                if run.policy is not None:
                    run.policy.skipping = skip
                    run.policy.apply()
                run.epoch()

    def _run_seed(self, seed: int, runs: list[Run], bar: "tqdm[Any]") -> None:
        group: dict[str, Run] = {}
        for policy in sorted(self.policies, key=POLICIES.index):  # a frozen run follows the wus run before it
            group[policy] = Run(policy, self.settings, self.data, seed, leader=group.get("wus"))
        runs += group.values()
        for _ in range(self.settings.epochs):
            for run in group.values():
                epoch = run.epoch()
                bar.update()
                self.say(_line(run, epoch))
            self._save(runs, complete=False)

    def _report(self, runs: list[Run], complete: bool) -> None:
        rows = results.summarise(runs)
        if not rows:
            return
        self._save(runs, complete)
        picture = self.out / PICTURE
        draw(picture, f"{self.settings.model} on {self.data.name}", runs)
        self.say("\n" + results.table(rows))
        self.say("s: share of steps skipped; f: time a skipped step saves; s*f: reduction to expect")
        if verdict := results.verdict(rows, len(self.data.x_test)):
            self.say(verdict)
        self.say(f"results: {self.out / RESULTS}\npicture: {picture}")

    def _save(self, runs: list[Run], complete: bool) -> None:
        results.save(self.out / RESULTS, self.arguments, runs, complete)


def _line(run: Run, epoch: Epoch) -> str:
    return (
        f"seed {run.seed}  {run.policy_name:<6}  epoch {epoch.number:>3}  {epoch.mode}  loss {epoch.loss:.4f}  "
        f"train {100 * epoch.train_accuracy:6.2f} %  test {100 * epoch.test_accuracy:6.2f} %  {epoch.seconds:6.2f} s"
    )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

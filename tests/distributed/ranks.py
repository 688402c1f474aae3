"""Two processes that stay, and run one function of a test after another in a fresh gloo group."""

import os
import tempfile
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD, PATIENCE = 2, 600  # seconds, of a machine that is busy with other things
GROUP_TIMEOUT = timedelta(seconds=300)


class Failed(Exception):
    """A function raised in a process; the text is its traceback."""


class Ranks:
    def __init__(self):
        self.pipes, self.count = [], 0

    def start(self):
        self.folder = tempfile.TemporaryDirectory()  # as long as they live: a group that ends late waits for its file
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(WORLD)]
        self.processes = [context.Process(target=_serve, args=(r, pairs[r][1]), daemon=True) for r in range(WORLD)]
        for process in self.processes:
            process.start()
        self.pipes = [ours for ours, _ in pairs]

    def run(self, function, *args):
        """What ``function(rank, *args)`` returns in each process."""
        if not self.pipes:
            self.start()
        self.count += 1
        for pipe in self.pipes:
            pipe.send((function, args, os.path.join(self.folder.name, str(self.count))))
        answers = [_answer(pipe) for pipe in self.pipes]
        if not all(done for done, _ in answers):
            self.stop()
            raise Failed("\n".join(f"rank {rank}: {found}" for rank, (done, found) in enumerate(answers) if not done))
        return [found for _, found in answers]

    def stop(self):
        if self.pipes:
            for process in self.processes:
                process.kill()
                process.join()
            self.folder.cleanup()
        self.pipes = []


def _answer(pipe):
    """Whether a process is done, and what it says."""
    if not pipe.poll(PATIENCE):
        return False, "no answer in time"
    try:
        return pipe.recv()
    except EOFError:
        return False, "the process has ended"


def _serve(rank, pipe):
    torch.set_num_threads(1)
    while True:
        function, args, store = pipe.recv()
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=GROUP_TIMEOUT)
            torch.manual_seed(0)
            answer = True, function(rank, *args)
        except Exception:
            answer = False, traceback.format_exc()
        pipe.send(answer)
        if dist.is_initialized():
            dist.destroy_process_group()

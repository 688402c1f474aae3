"""What ``import wuskern`` shows, brings along and needs."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

import wuskern as wk


@pytest.mark.parametrize("module", [wk])
def test_an_editor_sees_the_public_names_alone(module):
    assert {name for name in dir(module) if not name.startswith("_")} == set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_neither_torchs_compiler_nor_triton_is_imported_and_nothing_needs_a_folder_to_write_to(tmp_path):
    missing = str(tmp_path / "missing")
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), missing)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    heavy = ("torch._dynamo", "torch._inductor", "sympy", "triton")
    program = f"import sys, torch, wuskern; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], env=environment | places, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_flop_counter_that_is_imported_later_knows_our_ops(monkeypatch):
    monkeypatch.setattr(torch.utils, "flop_counter", importlib.import_module("torch.utils.flop_counter"))
    monkeypatch.delitem(sys.modules, "torch.utils.flop_counter")
    later = importlib.import_module("torch.utils.flop_counter")
    with later.FlopCounterMode(display=False) as counter:
        wk.ops.rowsparse_wgrad(torch.ones(5, 3), torch.ones(5, 2), torch.arange(3))
    assert counter.get_total_flops() == 2 * 5 * 2 * 3

import sys

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision():
    """PyPI's torchvision is built for CUDA. Beside a torch without it, its library does not load and importing it misses two
    operators; reading a data set or building a classifier uses none, so that declaring them is enough."""
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


@pytest.fixture
def without_torchvision(monkeypatch):
    """A function that makes importing torchvision raise an error, and timm, which needs it."""

    def remove(error):
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torchvision", "timm"):
                    raise error

        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    return remove


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """All networks here are small."""

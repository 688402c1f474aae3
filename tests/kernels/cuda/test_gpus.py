"""What is known of GPUs without one."""

import pytest
import torch

from wuskern.kernels.cuda import gpus
from wuskern.kernels.cuda.gpus import ARCHITECTURES, GPUS, architecture


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("8.0", "sm_80"),
        ("8.9", "sm_80"),
        ("sm_90a", "sm_90"),
        ("10.3", "sm_100"),
        ("sm_120", "sm_120"),
        ("12.1", "sm_120"),
        ("7.5", "sm_80"),
        ("gfx90a", "gfx942"),
    ],
)
def test_an_architecture_serves_the_capabilities_of_its_major(capability, expected):
    assert architecture(capability) == expected


def test_a_capability_in_other_words_is_refused():
    with pytest.raises(ValueError, match=r"capability: expected such as sm_90, 9.0 or gfx942, got 'hopper'"):
        architecture("hopper")


def test_where_triton_is_interpreted_tiles_are_those_of_the_least_gpu():
    assert gpus.architecture_of(torch.device("cpu")) == "sm_80"


@pytest.mark.gpu
def test_a_gpu_says_its_capability_and_its_architecture_is_known():
    device = torch.device("cuda")
    assert gpus.architecture_of(device) in ARCHITECTURES
    assert gpus.capability_of(device) == gpus.capability_of(torch.device("cuda", torch.cuda.current_device()))


def test_every_architecture_has_a_gpu_that_stands_for_it():
    assert tuple(GPUS) == ARCHITECTURES
    assert GPUS["sm_90"].peak(torch.float32, tf32=True) > GPUS["sm_90"].peak(torch.float32, tf32=False)

"""Names of devices, and what is said of those that are not there."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels.devices import Cuda, resolve_device
from hagane.system.errors import ConfigurationError


def test_a_gpu_has_a_number():
    names, two = ("auto", "cuda", "cuda:1", "cpu"), Cuda(devices=2, built=True)
    found = [str(resolve_device(name, two)) for name in names]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cpu"]


def test_auto_is_the_cpu_without_a_gpu():
    assert resolve_device("auto", Cuda(devices=0, built=True)).type == "cpu"


def test_detection_agrees_with_torch():
    assert (Cuda.detect().devices > 0) == torch.cuda.is_available()


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "mps", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match="is not one of auto, cpu, cuda, cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("built", "said"), [(False, "a build without CUDA; install"), (True, "finds 0 CUDA devices")]
)
def test_a_missing_gpu_comes_with_a_remedy(built, said):
    with pytest.raises(ConfigurationError, match=said):
        resolve_device("cuda", Cuda(devices=0, built=built))

"""Names of devices, and what is said of those that are not there."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels.devices import resolve_device
from hagane.system.errors import ConfigurationError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_has_a_number():
    names = ("auto", "cuda", "cuda:1", "cpu")
    assert [str(resolve_device(name)) for name in names] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "mps", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match="is not one of auto, cpu, cuda, cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("built", "said"), [(False, "a build without CUDA; install"), (True, "sees 0 CUDA devices")]
)
def test_a_missing_gpu_comes_with_a_remedy(monkeypatch, built, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    with pytest.raises(ConfigurationError, match=said):
        resolve_device("cuda")

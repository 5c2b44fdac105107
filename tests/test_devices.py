"""Devices by name, and what a configuration may ask of a machine."""

import pytest
import torch

from iumad.errors import ConfigError
from iumad.models import build as devices


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("auto") == torch.device("cpu")
    assert devices.pick_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_cuda_devices_by_number():
    assert devices.pick_device("auto") == torch.device("cuda:0")
    assert devices.pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"cuda:2.*only: cpu, cuda:0, cuda:1"):
        devices.pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:x", "", "CPU", "cuda:-1"])
def test_unknown_names(name):
    with pytest.raises(ConfigError, match=r"must be auto, cpu, cuda or cuda:N, got .*has: cpu"):
        devices.pick_device(name)


def test_absent_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="this machine has only: cpu"):
        devices.pick_device("cuda")


def test_a_machine_that_cannot_compile(monkeypatch):
    def compiled(_function, mode):  # noqa: ARG001
        def call(_x):
            raise RuntimeError("No working C++ compiler found\nin many lines")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(
        ConfigError, match=r"training.compile: .*\(No working C\+\+ compiler found\)"
    ):
        devices.require_compiler(torch.device("cpu"), "default")

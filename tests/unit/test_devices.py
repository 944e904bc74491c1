"""Devices that a command may be told to use."""

import argparse

import pytest
import torch

from alignkit.devices import device


def test_devices_that_are_here_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for said in ("cpu", "cpu:0", "cuda", "cuda:1"):
        assert device(said) == said
    with pytest.raises(argparse.ArgumentTypeError, match="cuda:2: there are 2 here, counted from 0"):
        device("cuda:2")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("gpu", "'gpu' is no device; here are cpu"),
        ("", "'' is no device"),
        ("cuda", "there is no cuda here, only cpu"),
        ("meta", "there is no meta here"),
        ("cpu:3", "cpu:3: there are 1 here"),
    ],
)
def test_other_devices_are_refused(said: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        device(said)

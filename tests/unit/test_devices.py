"""Devices that a command may be told to use."""

import argparse
import ctypes
from unittest.mock import Mock

import pytest
import torch

from alignkit.devices import available, device, keep_freed_memory


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


def test_freed_memory_is_kept_where_networks_run_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1) of glibc's malloc.h; not beside a GPU, nor unasked."""
    library = Mock()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr("alignkit.devices.available", lambda: {"cpu": 1, "cuda": 1})
    keep_freed_memory()
    assert not library.mallopt.called
    monkeypatch.setattr("alignkit.devices.available", lambda: {"cpu": 1})
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    keep_freed_memory()
    assert not library.mallopt.called
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    keep_freed_memory()
    assert [call.args for call in library.mallopt.call_args_list] == [(-3, 2**25), (-1, 2**31 - 1)]


def test_a_system_without_glibc_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert list(available()) == ["cpu"]
    keep_freed_memory()

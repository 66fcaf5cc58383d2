"""Which device is chosen, with faked devices: no test here has run on an Apple or AMD GPU."""

from __future__ import annotations

import os

import pytest
import torch

from kit.core_eval.loaders import resolve_device
from kit.errors import PrerequisiteError as KitPrerequisiteError
from reference.errors import PrerequisiteError
from reference.train.device import (
    choose_device,
    peak_memory_bytes,
    resolve_dtype,
    usable_cores,
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def fake(*, cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return fake


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "got"),
    [
        (False, False, "auto", "cpu"),
        (True, False, "auto", "cuda"),
        (False, True, "auto", "cpu"),  # an Apple GPU only when asked for
        (False, True, "mps", "mps"),
        (True, True, "cpu", "cpu"),
    ],
)
def test_the_device_is_chosen_alike_by_trainer_and_evaluator(
    machine, cuda: bool, mps: bool, asked: str, got: str
) -> None:
    machine(cuda=cuda, mps=mps)
    assert choose_device(asked) == torch.device(got)
    assert resolve_device(asked) == got


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_one_error_with_a_remedy(machine, asked: str) -> None:
    machine(cuda=False, mps=False)
    with pytest.raises(PrerequisiteError) as refused:
        choose_device(asked)
    assert asked in refused.value.message.lower() and "--device cpu" in refused.value.hint
    with pytest.raises(KitPrerequisiteError, match=asked):
        resolve_device(asked)


def test_only_cuda_computes_in_bf16_unless_told() -> None:
    assert resolve_dtype("auto", "cuda") == torch.bfloat16
    assert resolve_dtype("auto", "mps") == torch.float32
    assert resolve_dtype("auto", "cpu") == torch.float32
    assert resolve_dtype("bfloat16", "mps") == torch.bfloat16


def test_memory_and_cores_are_read_where_each_system_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 123)
    assert peak_memory_bytes(torch.device("mps")) == 123
    on_linux = peak_memory_bytes(torch.device("cpu"))
    monkeypatch.setattr("sys.platform", "darwin")  # bytes there, KiB on Linux
    assert peak_memory_bytes(torch.device("cpu")) * 1024 == pytest.approx(on_linux, rel=0.5)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()

"""Telemetry: a chain of its own, sums that its file gives again, and losses that stop no run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_hardware import FakeNvml, FakeNvmlError

from kit.hardware.nvml import Nvml
from kit.run.telemetry import TelemetrySampler
from kit.telemetry_summary import TELEMETRY_KIND, Summary
from kit.trust.chain import read_chain
from kit.trust.chain_writer import ChainWriter


def sampled(path: Path, seconds: float = 0.25, **options: Any) -> dict[str, Any]:
    sampler = TelemetrySampler(path, interval_s=0.02, **options)
    sampler.start()
    time.sleep(seconds)
    return sampler.stop()


def again(path: Path) -> dict[str, Any]:
    summary = Summary()
    for record in read_chain(path, TELEMETRY_KIND).records:
        summary.add(record)
    return summary.to_json()


def test_the_summary_is_what_the_file_gives_again(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    told = sampled(path, nvml=Nvml(FakeNvml()))
    chain = read_chain(path, TELEMETRY_KIND)
    assert chain.problems == []
    assert (told["head"], told["count"], told["bytes"]) == (chain.head, chain.count, chain.bytes)
    recomputed = json.loads(json.dumps(again(path)))
    assert {key: told[key] for key in recomputed} == recomputed
    assert told["samples"] >= 4 and told["lost"] == 0
    assert told["peaks"]["gpu_power_w"] == 412.0 and told["means"]["gpu_temp_c"] == 66
    assert told["throttled_share"] == {"power_cap": 1.0}


def test_energy_is_the_counter_and_the_integral(tmp_path: Path) -> None:
    summary = Summary()
    summary.add({"ev": "start", "interval_s": 1.0, "reasons": {}})
    for second in range(3601):
        summary.add(
            {
                "ev": "sample",
                "t_ms": second * 1000,
                "gpu_power_w": 400.0,
                "gpu_energy_j": 5000.0 + second * 404.0,
            }
        )
    energy = summary.to_json()["energy"]
    assert energy["gpu_joules_integrated"] == pytest.approx(3600 * 400.0)
    assert energy["gpu_joules_counter"] == pytest.approx(3600 * 404.0)
    assert energy["kwh"] == pytest.approx(0.404) and energy["source"] == "GPU, energy counter"


def test_a_gap_is_counted_and_not_integrated() -> None:
    summary = Summary()
    for t_ms in (0, 1000, 61_000, 62_000):
        summary.add(
            {"ev": "sample", "t_ms": t_ms, "gpu_power_w": 100.0, "gpu_energy_j": t_ms / 10.0}
        )
    told = summary.to_json()
    assert told["gap_s"] == 60.0
    assert told["energy"]["gpu_joules_integrated"] == 200.0
    assert told["energy"]["gpu_joules_counter"] == 6200.0


def test_a_counter_that_starts_over_does_not_count_backwards() -> None:
    summary = Summary()
    for t_ms, joules in ((0, 1000.0), (1000, 1400.0), (2000, 10.0), (3000, 410.0)):
        summary.add({"ev": "sample", "t_ms": t_ms, "gpu_energy_j": joules})
    assert summary.to_json()["energy"]["gpu_joules_counter"] == 800.0


def test_a_resumed_run_goes_on_in_the_same_chain(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    first = sampled(path, 0.1)
    second = sampled(path, 0.1, clock=lambda: time.monotonic_ns())
    assert second["samples"] > first["samples"] and second["starts"] == 2
    assert read_chain(path, TELEMETRY_KIND).problems == []


def test_without_a_gpu_host_facts_are_sampled_and_the_reason_told(tmp_path: Path) -> None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        told = sampled(tmp_path / "telemetry.jsonl")
        assert told["energy"]["kwh"] is None or told["energy"]["source"].startswith("CPU")
        assert told["reasons"]["gpu"]
        assert told["peaks"]["ram_used_bytes"] > 0
    else:
        pytest.skip("this machine has a GPU")


def test_a_card_that_falls_off_the_bus_leaves_nulls(tmp_path: Path) -> None:
    class Dying(FakeNvml):
        calls = 0

        def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
            self.calls += 1
            if self.calls > 2:
                raise FakeNvmlError("GPU is lost")
            return self.power_mw

    path = tmp_path / "telemetry.jsonl"
    told = sampled(path, nvml=Nvml(Dying()))
    powers = [r.get("gpu_power_w") for r in read_chain(path, TELEMETRY_KIND).records[1:]]
    assert powers[:2] == [412.0, 412.0] and powers[-1] is None
    assert told["samples"] == len(powers)


def test_a_card_without_an_energy_counter_still_has_its_power(tmp_path: Path) -> None:
    class NoCounter(FakeNvml):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
            raise FakeNvmlError("Not Supported")

    told = sampled(tmp_path / "telemetry.jsonl", nvml=Nvml(NoCounter()))
    assert told["samples"] > 3
    assert told["energy"]["gpu_joules_counter"] is None
    assert told["energy"]["source"] == "GPU, power integrated once a second"


def test_a_full_disk_loses_samples_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = TelemetrySampler(tmp_path / "telemetry.jsonl", interval_s=0.02)
    sampler.start()

    def full(self: ChainWriter, record: dict[str, Any]) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ChainWriter, "append", full)
    time.sleep(0.1)
    told = sampler.stop()
    assert told["lost"] >= 2 and told["samples"] >= 1


def test_stopping_twice_gives_the_same_summary(tmp_path: Path) -> None:
    sampler = TelemetrySampler(tmp_path / "telemetry.jsonl", interval_s=0.02)
    sampler.start()
    assert sampler.stop() == sampler.stop()
    assert TelemetrySampler(tmp_path / "never.jsonl").stop()["samples"] == 0


def test_sampling_once_a_second_costs_under_half_a_percent_of_a_core(tmp_path: Path) -> None:
    # At fifty samples a second the budget is fifty times as large.
    told = sampled(tmp_path / "telemetry.jsonl", 1.0, nvml=Nvml(FakeNvml()))
    assert told["samples"] > 10
    assert told["core_share"] / (told["samples"] / told["span_s"]) < 0.005

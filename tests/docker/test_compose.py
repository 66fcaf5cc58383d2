"""The compose file says what `launch` does. Needs no engine."""

from pathlib import Path

import yaml

from kit import launcher
from kit.run.separation import CAPABILITIES

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"


def test_each_service_is_as_sealed_as_launch_makes_it() -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    container = launcher.Container("image", ())
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges"], name
        assert service["pids_limit"] == launcher.PIDS, name
        assert service["tmpfs"] == [f"{path}:{how}" for path, how in container.tmpfs.items()], name
        if name in ("run", "prepare"):
            assert service["cap_add"] == list(CAPABILITIES), name
            assert service["stop_grace_period"] == f"{launcher.STOP_TIMEOUT_S}s", name
        else:
            assert "cap_add" not in service, name


def test_only_prepare_and_the_site_have_a_network() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {name for name, one in services.items() if one.get("network_mode") != "none"} == {
        "prepare",
        "site",
    }


def test_a_run_has_one_gpu() -> None:
    run = yaml.safe_load(COMPOSE.read_text())["services"]["run"]
    [device] = run["deploy"]["resources"]["reservations"]["devices"]
    assert len(device["device_ids"]) == 1
    assert run["shm_size"] == f"{launcher.SHM_BYTES // 2**30}g"

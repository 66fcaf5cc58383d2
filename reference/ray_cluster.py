"""Ray, for work on several machines: connected, or one error that says what is missing."""

from __future__ import annotations

import logging
from typing import Any

from reference.errors import TrainerError


def connect(address: str, cores: int | None = None) -> Any:
    """The module ray, connected to a cluster; a connection that is open already is used.

    Args:
        address: As for `ray.init`: "auto", "local" (started here) or "ray://host:port".
        cores: For "local": how many cores the cluster takes; None: all.

    Raises:
        TrainerError: The package is missing, or no cluster answers at `address`.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise TrainerError(
            "bad_input", "--ray needs the package ray", "in the checkout: pip install '.[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    local: dict[str, Any] = (
        {"num_cpus": cores, "include_dashboard": False} if address == "local" else {}
    )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TrainerError(
            "bad_input",
            f"no Ray cluster at {address!r}: {error}",
            "Start one: ray start --head",
        ) from error
    return ray

"""SOAP and SOAP-Muon: Adam in the eigenbasis of the covariances of Shampoo."""

from dataclasses import dataclass
from typing import Any

from reference.config.experiment import Experiment
from reference.config.fields import setting


@dataclass(frozen=True)
class Fields:
    """What `[pretrain]` takes for it."""

    soap_refresh_steps: int = setting(
        10,
        "Steps between refreshes of the eigenbasis of soap and soap_muon, after "
        "the first 20, which each have one.",
        unit="steps",
        low=1,
    )
    soap_max_dim: int = setting(
        2048,
        "A side of a matrix longer than this keeps its own axes under soap and "
        "soap_muon: covariance and basis of a side take 8 bytes times its length "
        "squared.",
        unit="entries",
        low=1,
    )


def _rules() -> dict[str, type[Any]]:
    from reference.experiments.soap.rules import Soap, SoapMuon

    return {"soap": Soap, "soap_muon": SoapMuon}


EXPERIMENT = Experiment(
    name="soap",
    fields=Fields,
    rules=_rules,
    asked=lambda section: section.get("matrix_optimizer") in ("soap", "soap_muon"),
)

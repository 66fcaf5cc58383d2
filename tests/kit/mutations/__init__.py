"""Ways of getting a run wrong, each with the check that must refuse it, in the order of checks.

Mutations come in three kinds, by what the forger could redo. `draft`: the run itself is changed,
then chained, built and signed again. `result`: the result is changed and signed again. `file`:
files are changed after signing.
"""

from importlib import import_module

from mutations.registry import MUTATIONS, Mutation

__all__ = ["MUTATIONS", "Mutation"]

for _name in (
    "form",
    "signature",
    "log",
    "order",
    "clocks",
    "figures",
    "inputs",
    "machine",
    "physics",
    "learning",
    "checkpoint",
    "copies",
    "expected",
):
    import_module(f"mutations.{_name}")

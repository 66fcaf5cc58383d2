"""Ways of getting a run wrong, each with the check that must refuse it, in the order of checks.

Mutations come in three kinds, by what the forger could redo. `draft`: the run itself is changed,
then chained, built and signed again. `result`: the result is changed and signed again. `file`:
files are changed after signing.
"""

from importlib import import_module

from mutations.registry import MUTATIONS, Mutation

__all__ = ["BY_SUBJECT", "MUTATIONS", "SUBJECTS", "Mutation"]

# Module -> what the forger does there.
SUBJECTS = {
    "form": "documents that are malformed, hostile or of another form",
    "signature": "signatures, keys and identities that are not the signer's",
    "log": "lines of the log edited, dropped, added or spliced",
    "order": "events in an order that no run has",
    "clocks": "clocks that are slow, absent, set or disagree",
    "figures": "figures typed into the result",
    "inputs": "other data, questions, recipe or code than named",
    "machine": "another card, several cards, telemetry of another day",
    "physics": "faster, cheaper or larger than the card allows",
    "learning": "losses, scores and seeds that no training gives",
    "checkpoint": "checkpoint files swapped, added, damaged or of another size",
    "copies": "somebody else's row, moved, mirrored or renamed",
    "expected": "a run unlike what its recipe makes",
}
# Module -> its mutations.
BY_SUBJECT: dict[str, list[Mutation]] = {}
for _name in SUBJECTS:
    _before = len(MUTATIONS)
    import_module(f"mutations.{_name}")
    BY_SUBJECT[_name] = MUTATIONS[_before:]

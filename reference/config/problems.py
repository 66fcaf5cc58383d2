"""What is wrong with a recipe that the range of each field cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reference.config.experiment import Problem, experiments

Section = Mapping[str, Any]


def problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of a recipe whose fields all have the right type."""
    model, pretrain, sft = recipe["model"], recipe["pretrain"], recipe["sft"]
    stages = recipe["stages"]
    yield from _head_problems(model)
    for name, section in (("pretrain", pretrain), ("sft", sft)):
        micro = max(1, section["device_batch_size"]) * model["seq_len"]
        if name in stages and section["total_batch_size"] % micro:
            yield Problem(
                f"{name}.total_batch_size",
                f"found {section['total_batch_size']}",
                f"must be a multiple of device_batch_size * seq_len = {micro}",
            )
    yield from _ramp_problems(model, pretrain)
    yield from _mixing_problems(pretrain)
    yield from _factor_problems(pretrain)
    yield from _momentum_problems(pretrain)
    for experiment in experiments():
        yield from experiment.problems(model, pretrain)
    if "pretrain" in stages and (pretrain["num_steps"] > 0) == (pretrain["hours"] > 0):
        yield Problem(
            "pretrain.num_steps",
            f"found {pretrain['num_steps']} with hours {pretrain['hours']}",
            "exactly one of num_steps and hours is above 0",
        )
    if pretrain["fill_budget"] and not pretrain["hours"]:
        yield Problem(
            "pretrain.fill_budget",
            "found with num_steps",
            "needs hours, the time that pretraining is planned to take",
        )


def _head_problems(model: Section) -> Iterator[Problem]:
    if model["n_embd"] % model["n_head"] or (model["n_embd"] // model["n_head"]) % 2:
        yield Problem(
            "model.n_head",
            f"found {model['n_head']}",
            f"must divide n_embd ({model['n_embd']}) into heads of even width",
        )
    if model["n_head"] % model["n_kv_head"]:
        yield Problem(
            "model.n_kv_head",
            f"found {model['n_kv_head']}",
            f"must divide n_head ({model['n_head']})",
        )


def _ramp_problems(model: Section, pretrain: Section) -> Iterator[Problem]:
    """Ramps begin at share 0, only move on, end at the full value, and cut batches evenly."""
    length, micro = model["seq_len"], max(1, pretrain["device_batch_size"]) * model["seq_len"]
    for name, full, unit in (
        ("seq_len_ramp", length, None),
        ("window_ramp", 1, None),
        ("batch_ramp", pretrain["total_batch_size"], micro),
    ):
        ramp, path = pretrain[name], f"pretrain.{name}"
        if not ramp:
            continue
        shares, values = [share for share, _ in ramp], [value for _, value in ramp]
        if shares[0] != 0 or sorted(set(shares)) != shares:
            yield Problem(path, f"found shares {shares}", "must rise, from 0 on")
        if values[-1] != full:
            yield Problem(path, f"ends with {values[-1]}", f"must end with {full}")
        uneven = [
            value
            for value in values
            if (unit and value % unit) or (name == "seq_len_ramp" and length % value)
        ]
        if uneven:
            rule = f"a multiple of {unit}" if unit else f"a divisor of {length}"
            yield Problem(path, f"found {uneven[0]}", f"must be {rule}")


def _mixing_problems(pretrain: Section) -> Iterator[Problem]:
    """Rows of other sources leave room for new ones, and come when all rows have full length."""
    sources = [name for name in ("replay", "sft") if pretrain.get(f"{name}_share")]
    together = sum(pretrain[f"{name}_share"] for name in sources)
    if together > 0.9:
        yield Problem(
            "pretrain.replay_share",
            f"with sft_share it is {together:g}",
            "together at most 0.9: the rest are new rows",
        )
    ramp = pretrain["seq_len_ramp"]
    full = ramp[-1][0] if ramp else 0.0
    for name in sources:
        begin = pretrain[f"{name}_from"]
        # Replayed rows are kept from half of `replay_from` on, and rows of other lengths are of no
        # use; conversations are packed into rows of full length.
        if begin < full:
            yield Problem(
                f"pretrain.{name}_from",
                f"found {begin:g}",
                f"seq_len_ramp reaches its end at {full:g}: not before that",
            )


def _momentum_problems(pretrain: Section) -> Iterator[Problem]:
    """Two running means can only be mixed to a mean age between their own."""
    kept = pretrain["maxwell_fast"], pretrain["maxwell_slow"]
    fast, slow = (share / (1.0 - share) for share in kept)
    if pretrain["matrix_optimizer"] == "bi_maxwell" and not (
        fast <= pretrain["maxwell_age"] <= slow and fast < slow
    ):
        yield Problem(
            "pretrain.maxwell_age",
            f"found {pretrain['maxwell_age']:g}",
            f"must lie between {fast:.3g} and {slow:.3g}, the mean ages of maxwell_fast and "
            "maxwell_slow",
        )


def _factor_problems(pretrain: Section) -> Iterator[Problem]:
    """The int8 loss has no version in which only some of its products are rounded."""
    passes = ("forward", "input_grad", "weight_grad")
    if (
        pretrain["matmul"] == "int8"
        and "head" in pretrain["matmul_layers"]
        and set(pretrain["matmul_passes"]) != set(passes)
    ):
        yield Problem(
            "pretrain.matmul_passes",
            f"found {list(pretrain['matmul_passes'])} with the head in int8",
            f"must be all of {', '.join(passes)}, or matmul_layers must not hold head",
        )

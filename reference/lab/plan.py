"""From a card and a time budget to a recipe, and to what it will reach.

Every depth of nanochat's family (width 64 a layer, rounded up to heads of 128) is costed for the
hours that are left after the other stages; the one with the lowest predicted bits per byte wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.lab.cards import CARDS, Card
from reference.lab.published_runs import Point
from reference.lab.scaling import (
    CORE_SPREAD,
    CoreLaw,
    Interval,
    LossLaw,
    OptimumLaw,
    bootstrap,
    equivalent_flops,
    fit_core,
    fit_loss,
    fit_optimum,
    interval,
    refit_from,
)
from reference.model.cost import count_flops, count_parameters, plan_vram
from reference.model.day import Day, plan_day
from reference.model.step_time import predicted_speed

TARGET_CORE = 0.256525
CORE_REACH = 0.1  # of the smallest run with CORE: below, its line says nothing
DEPTHS = range(2, 41, 2)  # odd ones are as wide as the next even one
HEAD_DIM = 128
VRAM_SHARE = 0.9  # the rest: CUDA context, allocator's gaps, the desktop
# Hours of a budget that a recipe gives its last stages (plans/01); the rest follows from the speed.
CHAT_EVAL_SHARE = 0.5 / 24
SFT_SHARE = 0.85 / 24
BASE_BATCH_TOKENS = 1 << 19  # of a step, where a candidate's speed is predicted
EVALUATIONS = {"eval_every": 500, "eval_tokens": 10485760}  # where the base recipe says nothing
BATCH_HORIZON = 10.5 * 110.1e6  # d12's, where nanochat's batch rule has 2^19 tokens


@dataclass(frozen=True)
class Laws:
    """What was learnt from the points, and what it could as well have been."""

    points: tuple[Point, ...]
    family: str
    loss: LossLaw
    core: CoreLaw | None
    optimum: OptimumLaw | None
    samples: tuple[tuple[LossLaw, CoreLaw | None], ...]


def fit_laws(points: Sequence[Point], family: str, *, repeats: int = 100) -> Laws:
    """Fits all laws; `repeats` bootstrap samples make the intervals."""
    loss = fit_loss(points)
    if family not in loss.factors:
        raise TrainerError(
            "bad_input",
            f"no run of family {family!r} is among the points",
            f"Families: {', '.join(loss.factors)}.",
        )

    def both(sample: Sequence[Point]) -> tuple[LossLaw, CoreLaw | None]:
        law = refit_from(loss, sample)
        return law, _core_law(sample, law)

    def try_optimum() -> OptimumLaw | None:
        try:
            return fit_optimum(points)
        except TrainerError:  # own runs alone rarely are iso-FLOP sweeps
            return None

    return Laws(
        points=tuple(points),
        family=family,
        loss=loss,
        core=_core_law(points, loss),
        optimum=try_optimum(),
        samples=tuple(bootstrap(points, both, repeats=repeats)),
    )


def _core_law(points: Sequence[Point], law: LossLaw) -> CoreLaw | None:
    try:
        return fit_core(points, law)
    except TrainerError:
        return None


@dataclass(frozen=True)
class Candidate:
    """One depth, trained for what is left of the budget."""

    config: ModelConfig
    parameters: int
    flops_per_token: int
    day: Day
    flops: float
    device_batch_size: int
    total_batch_size: int
    flops_per_s: float
    vram_bytes: int
    fits: bool
    val_bpb: float
    core: float | None

    @property
    def tokens(self) -> float:
        """Trained on in pretraining."""
        return self.day.tokens

    @property
    def hours(self) -> dict[str, float]:
        """Of each stage, and the margin."""
        return self.day.hours

    @property
    def tokens_per_s(self) -> float:
        return self.flops_per_s / self.flops_per_token

    @property
    def ratio(self) -> float:
        return self.tokens / self.parameters


def shape(depth: int, vocab_size: int, seq_len: int) -> ModelConfig:
    """nanochat's one dial: `depth` layers of 64 * depth channels, in heads of 128."""
    heads = max(1, -(-64 * depth // HEAD_DIM))
    return ModelConfig(
        vocab_size=vocab_size,
        n_layer=depth,
        n_embd=HEAD_DIM * heads,
        n_head=heads,
        n_kv_head=heads,
        seq_len=seq_len,
    )


def _core(point: Point, laws: Laws) -> float | None:
    """CORE of `point`; None a decade and more below the runs that the line was fitted to."""
    known = [p.flops for p in laws.points if p.core is not None and p.core_line]
    if laws.core is None or point.flops < CORE_REACH * min(known):
        return None
    return laws.core.core(equivalent_flops(point, laws.loss))


@dataclass(frozen=True)
class Setting:
    """What a plan takes as given from the base recipe.

    Args:
        recipe: The base recipe, as written or resolved.
        batch: The largest step in tokens: nanochat's rule asks for 2^20 at d20, and runs with half
            of it were better (pull requests 516 and 747). Where `fixed_batch`, the step itself.
    """

    vocab_size: int
    seq_len: int
    batch: int | None = None
    fixed_batch: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Setting:
        """The setting of a recipe, as written or resolved."""
        pretrain = recipe.get("pretrain", {})
        return cls(
            recipe.get("tokenizer", {}).get("vocab_size", 32768),
            recipe.get("model", {}).get("seq_len", 2048),
            pretrain.get("total_batch_size"),
            pretrain.get("scale_lr") is False,
            recipe,
        )

    def step_tokens(self, tokens: float) -> int:
        """Tokens of a step for a training of `tokens`."""
        if self.batch is not None and self.fixed_batch:
            return self.batch
        by_rule = total_batch_tokens(tokens)
        return by_rule if self.batch is None else min(by_rule, self.batch)


def candidates(
    card: Card, hours: float, laws: Laws, setting: Setting, *, vram_gib: float
) -> list[Candidate]:
    """Every depth that has a positive number of tokens; those beyond the memory say so."""
    found = []
    for depth in DEPTHS:
        config = shape(depth, setting.vocab_size, setting.seq_len)
        candidate = _cost(config, card, hours, vram_gib, laws, setting)
        if candidate is not None:
            found.append(candidate)
    return found


def choose(options: Sequence[Candidate]) -> Candidate:
    """The lowest predicted loss among those that fit; raises `TrainerError` when none does."""
    fitting = [option for option in options if option.fits]
    if not fitting:
        raise TrainerError(
            "bad_input",
            "no depth fits this card and these hours",
            "Give more --hours or more --vram.",
        )
    return min(fitting, key=lambda option: option.val_bpb)


def _cost(
    config: ModelConfig,
    card: Card,
    hours: float,
    vram_gib: float,
    laws: Laws,
    setting: Setting,
) -> Candidate | None:
    batch, _, _ = largest_batch(config, vram_gib)
    device = "cpu" if card.peak_flops is None else "cuda"
    step_tokens = setting.batch or BASE_BATCH_TOKENS
    recipe = {**sized_recipe(setting, config, hours, batch, step_tokens), "device": device}
    first = plan_day(recipe, speed_of(recipe, card))
    if first.hours["pretrain"] <= 0:
        return None
    wanted = setting.step_tokens(first.tokens)
    batch = max(1, min(batch, wanted // config.seq_len))
    micro = batch * config.seq_len
    total = max(1, round(wanted / micro)) * micro
    recipe = {**sized_recipe(setting, config, hours, batch, total), "device": device}
    # Another micro-batch has another speed, which may leave the day no pretraining after all.
    if plan_day(recipe, speed_of(recipe, card)).tokens <= 0:
        return None
    return candidate_of(recipe, card, laws, vram_gib=vram_gib)


def sized_recipe(
    setting: Setting, config: ModelConfig, hours: float, sequences: int, step_tokens: int
) -> dict[str, Any]:
    """The base recipe with another model, budget, micro-batch and step: what a plan decides."""
    base = setting.recipe
    batches = {"device_batch_size": sequences, "total_batch_size": step_tokens}
    pretrain = {k: v for k, v in base.get("pretrain", {}).items() if k != "num_steps"}
    written = {name: value for name, value in base.items() if name != "stages"}
    return {
        **written,
        "budget_s": 3600 * hours,
        "tokenizer": {**base.get("tokenizer", {}), "vocab_size": config.vocab_size},
        "model": {**base.get("model", {}), **config.to_json()},
        "pretrain": {**EVALUATIONS, **pretrain, **batches, "fill_budget": True, "hours": hours},
        "sft": {**base.get("sft", {}), "hours": SFT_SHARE * hours},
        "chat_eval": {**base.get("chat_eval", {}), "hours": CHAT_EVAL_SHARE * hours},
    }


def speed_of(recipe: Mapping[str, Any], card: Card) -> float:
    """Tokens a second that a recipe is expected to train on a card, as a mean over pretraining."""
    if card.modelled:
        return predicted_speed(recipe, card.name)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    return card.flops_per_s / count_flops(config).nanochat


def candidate_of(
    recipe: Mapping[str, Any], card: Card, laws: Laws, *, vram_gib: float
) -> Candidate:
    """What a recipe, resolved or made by `sized_recipe`, will do on a card."""
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    pretrain, tokens_per_s = recipe["pretrain"], speed_of(recipe, card)
    per_token = count_flops(config).nanochat
    parameters = count_parameters(config).scaling
    day = plan_day(recipe, tokens_per_s)
    flops = day.tokens * per_token
    vram = sum(plan_vram(config, pretrain["device_batch_size"], pretrain).values())
    point = Point("", laws.family, "", parameters, day.tokens, flops)
    return Candidate(
        config=config,
        parameters=parameters,
        flops_per_token=per_token,
        day=day,
        flops=flops,
        device_batch_size=pretrain["device_batch_size"],
        total_batch_size=pretrain["total_batch_size"],
        flops_per_s=tokens_per_s * per_token,
        vram_bytes=vram,
        fits=vram <= VRAM_SHARE * vram_gib * 2**30,
        val_bpb=laws.loss.loss(parameters, day.tokens, laws.family),
        core=_core(point, laws),
    )


def largest_batch(config: ModelConfig, vram_gib: float) -> tuple[int, int, bool]:
    """(sequences a micro-batch, bytes planned, whether even one fits), a power of two."""
    room = VRAM_SHARE * vram_gib * 2**30
    batch, needed = 1, sum(plan_vram(config, 1).values())
    fits = needed <= room
    while fits and batch < 64:
        larger = sum(plan_vram(config, 2 * batch).values())
        if larger > room:
            break
        batch, needed = 2 * batch, larger
    return batch, needed, fits


def total_batch_tokens(tokens: float) -> int:
    """Tokens of one optimizer step for a horizon of `tokens`."""
    from reference.optim.optimizer import power_lines_batch

    return max(512, power_lines_batch(tokens, BATCH_HORIZON))


@dataclass(frozen=True)
class Forecast:
    """What a candidate will reach. `core_run` also holds what seeds and sources add."""

    val_bpb: Interval
    core: Interval | None
    core_run: Interval | None
    ratio: Interval


def forecast(candidate: Candidate, laws: Laws) -> Forecast:
    """Intervals (95 %) of a candidate's loss, CORE and the best ratio at its budget."""
    point = Point("", laws.family, "", candidate.parameters, candidate.tokens, candidate.flops)
    product = candidate.parameters * candidate.tokens
    fitting = [pair for pair in laws.samples if laws.family in pair[0].factors]
    losses = [law.loss(point.parameters, point.tokens, laws.family) for law, _ in fitting]
    ratios = [product / law.best_parameters(product) ** 2 for law, _ in fitting]
    between = None
    if candidate.core is not None:  # else the point lies too far below what CORE was fitted to
        cores = [line.core(equivalent_flops(point, law)) for law, line in fitting if line]
        between = interval(cores) if cores else None
    run = None
    if between is not None:
        assert candidate.core is not None
        # Of one run: the line's own uncertainty, and the spread of runs around it.
        sd = math.hypot((between.high - between.low) / 3.92, 1.25**0.5 * CORE_SPREAD)
        run = Interval(candidate.core - 1.96 * sd, candidate.core + 1.96 * sd)
    return Forecast(interval(losses), between, run, interval(ratios))


def compare_cards(
    hours: float, laws: Laws, setting: Setting, names: Sequence[str]
) -> list[dict[str, Any]]:
    """What the same hours buy on other cards, each with its own best depth."""
    rows = []
    for name in names:
        card = CARDS[name]
        best = choose(candidates(card, hours, laws, setting, vram_gib=card.vram_gib))
        expected = forecast(best, laws)
        rows.append(
            {
                "card": name,
                "depth": best.config.n_layer,
                "tokens": best.tokens,
                "flops": best.flops,
                "val_bpb": best.val_bpb,
                "core": best.core,
                "core_run": expected.core_run,
                "assumes": card.source,
            }
        )
    return rows


# Depth and heads of 128 channels: nanochat's family, and shallower, wider models of like size.
SHAPES = ((18, 9), (20, 10), (22, 11), (18, 10), (16, 11), (16, 12), (18, 11))


def compare_shapes(
    card: Card, hours: float, laws: Laws, setting: Setting, *, vram_gib: float
) -> list[dict[str, Any]]:
    """What shapes around the day's optimum reach in the same predicted hours.

    The law knows a model's size alone: that a wider, shallower one learns as well from a token is
    an assumption, and only its speed is predicted here.
    """
    rows = []
    for depth, heads in SHAPES:
        config = ModelConfig(
            vocab_size=setting.vocab_size,
            n_layer=depth,
            n_embd=HEAD_DIM * heads,
            n_head=heads,
            n_kv_head=heads,
            seq_len=setting.seq_len,
        )
        found = _cost(config, card, hours, vram_gib, laws, setting)
        if found is not None:
            rows.append(
                {
                    "depth": depth,
                    "width": config.n_embd,
                    "parameters": found.parameters,
                    "tokens_per_s": found.tokens_per_s,
                    "tokens": found.tokens,
                    "val_bpb": found.val_bpb,
                    "fits": found.fits,
                }
            )
    return rows


def notes(candidate: Candidate, laws: Laws) -> list[str]:
    """What a reader should know before believing the forecast."""
    said = []
    budgets = [point.flops for point in laws.points if point.val_bpb is not None]
    if not min(budgets) <= candidate.flops <= max(budgets):
        said.append(
            f"{candidate.flops:.2g} FLOPs lie outside the points' {min(budgets):.2g} to "
            f"{max(budgets):.2g}: the forecast is an extrapolation"
        )
    if not candidate.fits:
        said.append("this depth does not fit the memory")
    if laws.core is None:
        said.append("too few points with CORE: no forecast of it")
    elif candidate.core is None:
        said.append("so small a training is chance on CORE: no forecast of it")
    elif laws.family != "climbmix":
        said.append("CORE is read off ClimbMix runs by compute alone: another corpus moves it")
    return said

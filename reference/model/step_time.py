"""A roofline of one training step: predicted microseconds a token, by kind of kernel.

Each kind of kernel takes the longer of its bytes over the card's measured bandwidth and its FLOPs
over the rate that such products reach. Kernels run one after another, so the times add up. One
number is fitted to published speeds: the share of the data sheet's peak that large products reach
(`calibrate`). `leave_one_out` says how far the model is from each published speed when fitted to
the others. The rest is counted:

- FLOPs from the model's shape;
- bytes of compiled elementwise kernels as TorchInductor itself counts them for this trainer's d20;
- bytes of eager kernels from what each reads and writes.

The shares of attention, masks, int8 and bandwidth were chosen by hand with the published speeds in
view, so the errors of `leave_one_out` are on the low side. Nothing here was measured by this
project on a GPU.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.model.cost import count_flops, count_parameters

Kind = Literal["bf16", "fp8", "int8"]
Passes = tuple[Kind, Kind, Kind]  # output, input gradient, weight gradient
BF16: Passes = ("bf16", "bf16", "bf16")
POINTS = Path(__file__).with_name("step_time_points.toml")
BANDWIDTH_SHARE = 0.915  # of the data sheet: 0.92 TB/s were measured of an RTX 4090's 1.008
ATTENTION_SHARE = 0.60  # FlashAttention's forward and backward, causal FLOPs over the bf16 peak
MASKED_SHARE = 0.45  # attention with an explicit mask computes every pair of positions
INT8_SHARE = (
    0.65  # of the int8 peak, in units of the fitted share: Triton reaches 2.8 x bf16, not 4
)
INT8_BLOCK = 128  # inputs of a product that share one scale in each row (`kernels.int8_rounding`)
# What our int8 kernel does on the fp32 units with every sum of such a block: it subtracts the
# offset that makes the int32 sum readable as fp32, multiplies both scales, multiplies the sum by
# them and adds. The data sheet counts each operation as two FLOPs. Other warps may hide this behind
# their products. It is counted in full.
SCALE_OPERATIONS = 4
LAUNCH_GAP_S = 1.0e-6  # idle between two kernels of one stream
MUON_ITERATIONS = 5
PASSES = ("forward", "input_grad", "weight_grad")


class Rates(NamedTuple):
    """A card's data sheet: dense FLOP/s by kind of factors (fp32 or int32 sums), bytes/s, and the
    FLOP/s of its fp32 units."""

    bf16: float
    fp8: float
    int8: float
    bandwidth: float
    fp32: float

    def scales_s(self, multiplications: float) -> float:
        """Seconds that int8 products of so many multiplications spend on scales of blocks."""
        return multiplications / INT8_BLOCK * SCALE_OPERATIONS * 2 / self.fp32


RATES = {
    "rtx4090": Rates(165.2e12, 330.3e12, 660.6e12, 1008e9, 82.6e12),
    "rtx4070": Rates(58.3e12, 116.6e12, 233.2e12, 504e9, 29.1e12),
    "rtx5090": Rates(209.5e12, 419.0e12, 838.0e12, 1792e9, 104.8e12),
    "rtx3090": Rates(71.0e12, 71.0e12, 284.0e12, 936e9, 35.6e12),
}


@dataclass(frozen=True)
class Design:
    """What a trainer moves through memory besides its products.

    Args:
        elementwise: Bytes a token, layer and channel of norms, activations, rotations, residuals.
        loss: Bytes a logit, products included.
        loss_chunk: Tokens whose logits exist at once (0: all). Each chunk reads and writes the
            head's whole fp32 gradient.
        casts: Bytes a matrix weight and micro-step to cast or round fp32 weights.
        accumulation: Bytes a matrix weight and micro-step to add gradients in fp32.
        tables: Bytes a token-table entry and micro-step for dense gradients.
        table_rows: Bytes an entry of the tables' rows that a token looks up, for their gradients.
        rounding: Bytes an element of a product's input that rounding it to 8 bits moves.
        masked: Windows through an explicit attention mask, which computes every pair.
        launches: Kernels a layer and micro-step.
        optimizer: Bytes a matrix weight and step of Muon's elementwise kernels.
    """

    elementwise: float
    loss: float
    loss_chunk: int
    casts: float
    accumulation: float
    tables: float
    table_rows: float
    rounding: float
    masked: bool
    launches: float
    optimizer: float


# TorchInductor's own counts for d20 at micro-batch 4, code for an RTX 4090: 233 GB in compiled
# kernels for 65,536 tokens, 39.7 GB of them casts of weights.
COMPILED = Design(
    elementwise=115.0,
    loss=10.0,
    loss_chunk=2752,
    casts=12.6,
    accumulation=12.0,
    tables=8.0,
    table_rows=0.0,
    rounding=10.0,
    masked=False,
    launches=75.0,
    optimizer=100.0,
)
# A gradient's row is read, the table's row read and written, in bf16 (`kernels.table_gradient`).
# 1,436 kernels a micro-step of `reference` in bf16, counted on the null device (`tests/nullgpu`).
OURS = replace(COMPILED, tables=0.0, table_rows=6.0, launches=72.0)
# `kernels.int8_rounding` reads an input once and writes it in int8 in two layouts: 4 bytes. The
# gradient of relu squared has two inputs of 4 widths each: 6 bytes. A layer has 7 widths of inputs
# and 9 of gradients: (12 * 4 + 4 * 6) / 16 = 4.5 bytes. What the norm and relu squared no longer
# write and read in bf16, forward and backward, is 44 of 115 bytes.
# Weights' gradients are read and written by the product that adds to them: 8 bytes. 1,016 kernels.
INT8 = replace(OURS, rounding=4.5, elementwise=71.0, casts=0.0, accumulation=8.0, launches=51.0)
DESIGNS = {
    "ours": OURS,
    # The loss as one compiled function over all logits; a single token table in bf16.
    "nanochat": replace(COMPILED, loss=26.0, loss_chunk=0, elementwise=100.0),
    "nanochat-masked": replace(COMPILED, loss=26.0, loss_chunk=0, masked=True),
    # Hand-written kernels: weights cast once a step, gradients added inside the products.
    "fused": replace(
        COMPILED,
        elementwise=60.0,
        loss=8.0,
        loss_chunk=0,
        casts=0.0,
        accumulation=8.0,
        tables=0.0,
        rounding=1.0,
        launches=25.0,
        optimizer=30.0,
    ),
}


@dataclass(frozen=True)
class Work:
    """One step of a model, in counts.

    Args:
        block_parameters: Matrix entries of the blocks; head_parameters: of the head.
        attention: FLOPs a token of the visible pairs; attention_all: of all causal windows whole.
        table_entries: Of all token tables with gradients, the head left out.
    """

    layers: int
    width: int
    vocab: int
    block_parameters: float
    head_parameters: float
    attention: float
    attention_all: float
    table_entries: float
    micro_tokens: int
    step_tokens: int

    @classmethod
    def of(cls, config: ModelConfig, micro_batch: int, step_tokens: int) -> Work:
        """The step of a model of ours with `micro_batch` sequences a micro-step."""
        p, flops = count_parameters(config), count_flops(config)
        head = p.unembedding or p.tied_head
        return cls(
            layers=config.n_layer,
            width=config.n_embd,
            vocab=config.padded_vocab_size,
            block_parameters=p.scaling - head,
            head_parameters=head,
            attention=flops.causal_attention,
            attention_all=12.0 * config.n_layer * config.n_embd * config.seq_len,
            table_entries=p.embedding + p.value_embedding,
            micro_tokens=micro_batch * config.seq_len,
            step_tokens=max(step_tokens, micro_batch * config.seq_len),
        )


class Row(NamedTuple):
    """A kind of kernel: what it costs a token, and which bound it meets."""

    name: str
    us: float
    bytes: float
    flops: float
    bound: str


class Prediction(NamedTuple):
    """Rows of a step. Predicted, not measured."""

    rows: tuple[Row, ...]

    @property
    def us_per_token(self) -> float:
        return sum(row.us for row in self.rows)

    @property
    def tokens_per_s(self) -> float:
        return 1e6 / self.us_per_token


def predict(
    work: Work,
    design: Design,
    rates: Rates,
    share: float,
    *,
    kinds: Passes = BF16,
    head: Passes = BF16,
) -> Prediction:
    """Microseconds a token of each kind of kernel.

    Args:
        share: Of the bf16 peak that large products reach (`calibrate`).
        kinds: Factors of the blocks' three products; head: of the head's.
    """
    bandwidth = BANDWIDTH_SHARE * rates.bandwidth
    n, steps = work.micro_tokens, work.step_tokens

    def row(name: str, *, moved: float = 0.0, flops: float = 0.0, rate: float = math.inf) -> Row:
        by_bytes, by_flops = moved / bandwidth, flops / rate
        bound = "arithmetic" if by_flops > by_bytes else "memory"
        return Row(name, 1e6 * max(by_bytes, by_flops), moved, flops, bound)

    def product_rate(passes: Passes) -> float:
        """FLOP/s over the three products, which have equal FLOPs."""
        peaks = [getattr(rates, k) * (INT8_SHARE if k == "int8" else 1.0) for k in passes]
        return share * len(peaks) / sum(1 / peak for peak in peaks)

    blocks, tables = work.block_parameters, work.table_entries
    chunks = math.ceil(n / design.loss_chunk) if design.loss_chunk else 1
    # Inputs of a layer's products: 7 widths of states and 9 of gradients.
    eight_bit = sum(kind != "bf16" for kind in kinds) / 3
    rounded = 16.0 * work.width * work.layers * eight_bit
    pairs = work.attention_all if design.masked else work.attention
    attention_rate = (MASKED_SHARE if design.masked else ATTENTION_SHARE) * rates.bf16
    # Each iteration multiplies by the smaller side thrice.
    muon = MUON_ITERATIONS * 3 * 2 * blocks * work.width
    in_int8 = blocks * kinds.count("int8") + work.head_parameters * head.count("int8")
    gaps = LAUNCH_GAP_S * design.launches * work.layers / n
    return Prediction(
        (
            row("block products", flops=6 * blocks, rate=product_rate(kinds)),
            row("head products", flops=6 * work.head_parameters, rate=product_rate(head)),
            Row("int8 scales", 1e6 * rates.scales_s(in_int8), 0.0, 0.0, "fp32 units"),
            row("attention", flops=pairs, rate=attention_rate),
            row("rounding", moved=design.rounding * rounded),
            row("elementwise", moved=design.elementwise * work.layers * work.width),
            row("loss", moved=design.loss * work.vocab + 8 * work.head_parameters * chunks / n),
            row("weight casts", moved=design.casts * blocks / n),
            row("gradient sums", moved=design.accumulation * blocks / n),
            row(
                "table gradients",
                moved=design.tables * tables / n + design.table_rows * tables / work.vocab,
            ),
            row("optimizer", moved=(design.optimizer * blocks + 14 * tables) / steps),
            row("Muon's products", flops=muon / steps, rate=product_rate(BF16)),
            Row("launch gaps", 1e6 * gaps, 0.0, 0.0, "gaps"),
        )
    )


@dataclass(frozen=True)
class SpeedPoint:
    """A published speed (see step_time_points.toml)."""

    name: str
    card: str
    tokens_per_s: float
    source: str
    design: str
    work: Work
    kind: Kind = "bf16"
    note: str = ""

    def predicted(self, share: float) -> Prediction:
        return predict(
            self.work, DESIGNS[self.design], RATES[self.card], share, kinds=(self.kind,) * 3
        )


def speed_points() -> tuple[SpeedPoint, ...]:
    """The published speeds."""
    return tuple(map(_point, tomllib.loads(POINTS.read_text())["point"]))


def _point(row: Mapping[str, Any]) -> SpeedPoint:
    C, V, L, T = row["width"], row["vocab"], row["layers"], row["seq_len"]
    whole = 12.0 * L * C * T
    work = Work(
        layers=L,
        width=C,
        vocab=V,
        block_parameters=row["block_parameters"],
        head_parameters=C * V,
        attention=whole / 2,
        attention_all=whole,
        table_entries=C * V,
        micro_tokens=row["micro_tokens"],
        step_tokens=row["step_tokens"],
    )
    return SpeedPoint(
        row["name"],
        row["card"],
        row["tokens_per_s"],
        row["source"],
        row["design"],
        work,
        row.get("kind", "bf16"),
        row.get("note", ""),
    )


def calibrate(points: Sequence[SpeedPoint]) -> float:
    """The share of the peak with the smallest squared error of log speed over `points`."""

    def error(share: float) -> float:
        return sum(
            math.log(point.predicted(share).tokens_per_s / point.tokens_per_s) ** 2
            for point in points
        )

    return min((s / 1000 for s in range(500, 1151)), key=error)


@cache
def fitted_share() -> float:
    """`calibrate` of all published speeds."""
    return calibrate(speed_points())


def leave_one_out(points: Sequence[SpeedPoint]) -> list[tuple[SpeedPoint, float]]:
    """For each point the speed that the model predicts when fitted to the others."""
    found = []
    for held_out in points:
        share = calibrate([point for point in points if point is not held_out])
        found.append((held_out, held_out.predicted(share).tokens_per_s))
    return found


def rates_of(card: str) -> Rates:
    """The rates of a card; raises `TrainerError` for one that the model does not know."""
    if card not in RATES:
        raise TrainerError(
            "bad_input",
            f"the time model knows no card {card!r}",
            f"Known: {', '.join(RATES)}.",
        )
    return RATES[card]


def card_of(recipe: Mapping[str, Any]) -> str:
    """The card that a recipe is planned for: its track's, else an RTX 4090."""
    track = str(recipe.get("track", ""))
    return next((card for card in RATES if track.startswith(f"{card}-")), "rtx4090")


def predict_recipe(recipe: Mapping[str, Any], card: str = "rtx4090") -> Prediction:
    """The prediction for a resolved recipe's pretraining at its own micro-batch.

    Switches that change the factors of products (`matmul…`) or the loss (`fused_loss`) count; what
    a lever does later in the run does not.

    Raises:
        TrainerError: The card is not known.
    """
    from reference.train.memory import VRAM_BYTES, fitting_micro_batch

    rates = rates_of(card)
    section = recipe["pretrain"]
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    design = design_of(section)
    work = Work.of(
        config, fitting_micro_batch(config, section, VRAM_BYTES), section["total_batch_size"]
    )
    kind = _factors(section.get("matmul", "bf16"))
    passes = section.get("matmul_passes", PASSES)
    kinds = tuple(kind if name in passes else "bf16" for name in PASSES)
    # fp8 takes the logits alone of the head's products (`reference.model.loss`).
    logits: Kind = kind if "head" in section.get("matmul_layers", ()) else "bf16"
    head = (logits,) * 3 if kind == "int8" else (logits, "bf16", "bf16")
    return predict(
        work,
        design,
        rates,
        fitted_share(),
        kinds=cast(Passes, kinds),
        head=head,
    )


def predicted_speed(recipe: Mapping[str, Any], card: str) -> float:
    """Tokens a second as a mean over pretraining: after `matmul_until` products are in bf16."""
    fast = predict_recipe(recipe, card).tokens_per_s
    section = recipe["pretrain"]
    until = section.get("matmul_until", 1.0)
    if section.get("matmul", "bf16") == "bf16" or until >= 1.0:
        return fast
    plain = predict_recipe({**recipe, "pretrain": {**section, "matmul": "bf16"}}, card)
    return float(until * fast + (1 - until) * plain.tokens_per_s)


def design_of(section: Mapping[str, Any]) -> Design:
    """What this trainer moves with the switches of a recipe's `[pretrain]`."""
    design = INT8 if section.get("matmul") == "int8" else OURS
    if not section.get("fused_loss", True):
        design = replace(design, loss=26.0, loss_chunk=0)
    return design


def _factors(setting: Any) -> Kind:
    """The kind of factors that `matmul` names; "fastest" is decided by measuring."""
    if setting in ("fp8", "fp8_rowwise"):
        return "fp8"
    return "int8" if setting == "int8" else "bf16"

"""The fields of a recipe's `[pretrain]`, `[sft]` and `[chat_eval]` that core implements.

Experiments add fields of their own to `[pretrain]` (`reference.config.experiment`).
"""

from __future__ import annotations

from dataclasses import dataclass

from reference.config.fields import Ramp, setting


@dataclass(frozen=True)
class Pretrain:
    """Pretraining. Exactly one of num_steps and hours is above 0: the horizon of the schedule."""

    num_steps: int = setting(
        0,
        "Optimizer steps; 0: the horizon is time.",
        unit="steps",
        low=0,
    )
    hours: float = setting(
        0,
        "Hours of the stage, everything counted; 0: the horizon is num_steps.",
        unit="h",
        low=0,
        high=168,
    )
    fill_budget: bool = setting(
        False,
        "Train until the later stages need the rest of the recipe's budget, at the speed measured "
        "so far; hours is then only what the plan expects.",
    )
    device_batch_size: int = setting(
        8,
        "Sequences in a micro-batch; 0: as many as the memory plan allows. Halved"
        " where they would not fit, with the same total_batch_size.",
        unit="sequences",
        low=0,
    )
    total_batch_size: int = setting(
        524288,
        "Tokens in an optimizer step; a multiple of device_batch_size * seq_len.",
        unit="tokens",
        low=16,
    )
    warmup_steps: int = setting(
        40,
        "Steps of linear warm-up.",
        unit="steps",
        low=0,
    )
    warmdown_ratio: float = setting(
        0.65,
        "Last share of the horizon in which the learning rate falls linearly.",
        unit="share of the horizon",
        low=0,
        high=1,
    )
    final_lr_frac: float = setting(
        0.05,
        "Learning rate at the end, as a share of its peak.",
        unit="share of the peak",
        low=0,
        high=1,
    )
    decay: str = setting(
        "linear",
        "How the learning rate falls over warmdown_ratio: linear, cosine, sqrt (1"
        " - sqrt), square, inverse_time, power (see decay_exponent). A small "
        "warmdown_ratio makes it WSD.",
        choices=("linear", "cosine", "sqrt", "square", "inverse_time", "power"),
    )
    decay_exponent: float = setting(
        1.25,
        "Of decay power: the learning rate falls as (1 - share) to this power. "
        "With warmdown_ratio 1 a power cooldown.",
        above=0,
        high=8,
    )
    momentum: tuple[float, float, float] = setting(
        (0.85, 0.97, 0.9),
        "Of the rule of the blocks' matrices: at the first step, at its height, at the end.",
        low=0,
        below=1,
    )
    momentum_steps: int = setting(
        400,
        "Steps over which momentum rises; it falls along the warm-down.",
        unit="steps",
        low=0,
    )
    maxwell_from: int = setting(
        1000,
        "Step from which bi_maxwell mixes its two running means.",
        unit="steps",
        low=0,
    )
    maxwell_fast: float = setting(
        0.85,
        "Share of the short running mean that a step keeps.",
        low=0,
        high=0.9999,
    )
    maxwell_slow: float = setting(
        0.98,
        "Share of the long running mean that a step keeps.",
        low=0,
        high=0.9999,
    )
    maxwell_age: float = setting(
        30.0,
        "Mean age of the gradients in the mix, between those of the two means.",
        unit="steps",
        low=0,
    )
    weight_decay_schedule: str = setting(
        "cosine",
        "How Muon's weight decay falls over the run.",
        choices=("cosine", "linear", "constant"),
    )
    average: str = setting(
        "none",
        "Keeps an average of the run's weights: ema (its horizon a share of the steps so far) or "
        "tail (the mean over the last share). The run ends in the average or in the last "
        "weights, whichever has fewer bits per byte on the validation rows.",
        choices=("none", "ema", "tail"),
    )
    average_share: float = setting(
        0.05,
        "The share that average speaks of.",
        unit="share",
        above=0,
        high=1,
    )
    rollbacks: int = setting(
        0,
        "How often a run that diverges goes back to its last checkpoint with half"
        " the learning rate; then it stops.",
        unit="times",
        low=0,
        high=10,
    )
    divergence_nats: float = setting(
        3.0,
        "A loss this far above the running mean, or not a number, is divergence.",
        unit="nats",
        above=0,
    )
    matrix_optimizer: str = setting(
        "muon",
        "Of the blocks' matrices: muon, bi_maxwell (muon with a second momentum), adamw (for "
        "comparison: it wants about a tenth of matrix_lr), or the rule of an experiment, which "
        "takes matrix_lr in muon's scale.",
        choices=("muon", "bi_maxwell", "adamw"),
    )
    matrix_lr: float = setting(
        0.02,
        "The blocks' matrices.",
        low=0,
    )
    embedding_lr: float = setting(
        0.3,
        "AdamW, token embedding.",
        low=0,
    )
    unembedding_lr: float = setting(
        0.008,
        "AdamW, head.",
        low=0,
    )
    value_embedding_lr: float = setting(
        0.15,
        "AdamW, value embeddings.",
        low=0,
    )
    resid_lr: float = setting(
        0.005,
        "AdamW, residual scalars.",
        low=0,
    )
    norm_scale_lr: float = setting(
        0.005,
        "AdamW, the norms' scales.",
        low=0,
    )
    x0_lr: float = setting(
        0.5,
        "AdamW, x0 scalars.",
        low=0,
    )
    gate_lr: float = setting(
        0.2,
        "AdamW, smear and backout.",
        low=0,
    )
    weight_decay: float = setting(
        0.28,
        "Muon's cautious weight decay before scaling.",
        low=0,
    )
    scale_lr: bool = setting(
        True,
        "Scale learning rates with batch and width, weight decay with batch and size.",
    )
    eval_every: int = setting(
        250,
        "Steps between bits-per-byte evaluations; 0: only first and last.",
        unit="steps",
        low=0,
    )
    eval_tokens: int = setting(
        10485760,
        "Validation tokens of each evaluation.",
        unit="tokens",
        low=16,
    )
    eval_tokens_between: int = setting(
        0,
        "Validation tokens of the evaluations between the first and the last, "
        "from the same beginning of the split; 0: eval_tokens.",
        unit="tokens",
        low=0,
    )
    checkpoint_every: int = setting(
        1000,
        "Steps between checkpoints to resume from; 0: none.",
        unit="steps",
        low=0,
    )
    snapshot_every: int = setting(
        0,
        "Steps between snapshots that stay with the checkpoint, so that others "
        "can do steps again (verify --replay); 0: none. One holds weights and "
        "optimizer state.",
        unit="steps",
        low=0,
    )
    compile: str = setting(
        "auto",
        "torch.compile: auto uses it where it pays.",
        choices=("auto", "on", "off"),
    )
    attention: str = setting(
        "auto",
        "Attention kernel: auto times those at hand on the GPU and takes the "
        "fastest; fixed ones for comparison.",
        choices=(
            "auto",
            "sdpa",
            "cudnn",
            "varlen",
            "flex",
            "flex_small",
            "fa2",
            "fa3",
            "blocks",
            "mask",
        ),
    )
    document_mask: bool = setting(
        False,
        "No token attends to, or is smeared with, an earlier document of its row.",
    )
    matmul: str = setting(
        "bf16",
        "Factors of the blocks' matrix products: bf16, or 8 bits: fp8 (one scale "
        "a matrix), fp8_rowwise (a scale a row), int8 (rounded where a tensor is "
        "made, weights once a step; bf16 where that is not faster on the GPU). "
        "fastest: bf16 or fp8, timed for each shape.",
        choices=("bf16", "fp8", "fp8_rowwise", "int8", "fastest"),
    )
    matmul_passes: tuple[str, ...] = setting(
        (
            "forward",
            "input_grad",
            "weight_grad",
        ),
        "Products that take 8-bit factors.",
        choices=("forward", "input_grad", "weight_grad"),
    )
    matmul_layers: tuple[str, ...] = setting(
        (
            "attention",
            "mlp",
        ),
        "Maps whose products take 8-bit factors; of the head only the logits, with "
        "int8 all three products.",
        choices=("attention", "mlp", "head"),
    )
    matmul_until: float = setting(
        0.95,
        "Share of the horizon after which all products are back in bf16; 1: never.",
        unit="share of the horizon",
        low=0,
        high=1,
    )
    fused_loss: bool = setting(
        True,
        "Cross-entropy in chunks; false: all logits in memory at once.",
    )
    momentum_dtype: str = setting(
        "float32",
        "Momentum of the blocks' matrices (not adamw's).",
        choices=("float32", "bfloat16"),
    )
    factored_second_moment: bool = setting(
        False,
        "The second moment of token tables as a row and a column instead of a table.",
    )
    compile_optimizer: bool = setting(
        False,
        "Compile Muon's update (GPU).",
    )
    seq_len_ramp: Ramp = setting(
        (),
        "Shorter sequences first: pairs of elapsed share and tokens, from share "
        "0; the last is model.seq_len. Evaluation is always at full length.",
        pairs=dict(type="integer", low=16),
    )
    window_ramp: Ramp = setting(
        (),
        "Narrower attention windows first: pairs of elapsed share and part of "
        "each layer's window, from share 0; the last is 1.",
        pairs=dict(type="number", above=0, high=1),
    )
    batch_ramp: Ramp = setting(
        (),
        "Smaller batches first: pairs of elapsed share and tokens, from share 0; "
        "the last is total_batch_size. Rates are scaled by the square root.",
        pairs=dict(type="integer", low=16),
    )
    sft_share: float = setting(
        0,
        "Share of the rows that are packed conversations of sft.sources in the "
        "last part of pretraining; 0: none. Stage sft can then be short "
        "(sft.num_steps).",
        unit="share of the rows",
        low=0,
        high=0.5,
    )
    sft_from: float = setting(
        0.8,
        "Elapsed share from which rows are conversations, too.",
        unit="share of the run",
        low=0,
        below=1,
    )
    sft_targets: str = setting(
        "all",
        "What is learnt of those rows: all tokens, or answers alone as in stage "
        "sft. Padding never is.",
        choices=("all", "answers"),
    )
    deterministic: bool = setting(
        False,
        "Equal bits from equal seeds on one GPU, for replaying parts of a run; "
        "slower. A CPU always is.",
    )
    vram_cap_gib: float = setting(
        0,
        "GPU memory to stay within, in GiB; 0: the card's own.",
        unit="GiB",
        low=0,
        high=1024,
    )
    prefetch: int = setting(
        4,
        "Micro-batches packed ahead by a thread.",
        unit="micro-batches",
        low=0,
        high=64,
    )
    background_checkpoints: bool = setting(
        True,
        "Write checkpoints in a thread while training continues.",
    )


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning on conversations."""

    num_steps: int = setting(
        100,
        "Optimizer steps; the stage's whole length. A few dozen make it a short "
        "one, after conversations in pretraining (pretrain.sft_share). With hours above 0 only "
        "the steps planned: the warm-up is a twentieth of them.",
        unit="steps",
        low=1,
    )
    hours: float = setting(
        0,
        "Hours of the stage, everything counted: a slow card then trains on fewer conversations "
        "instead of missing the deadline; 0: the horizon is num_steps.",
        unit="h",
        low=0,
        high=168,
    )
    device_batch_size: int = setting(
        8,
        "Sequences in a micro-batch.",
        unit="sequences",
        low=1,
    )
    total_batch_size: int = setting(
        524288,
        "Tokens in an optimizer step.",
        unit="tokens",
        low=16,
    )
    lr_frac: float = setting(
        0.8,
        "Peak learning rate as a share of pretraining's.",
        unit="share of the peak",
        low=0,
        high=10,
    )
    warmdown_ratio: float = setting(
        0.5,
        "Last share of the steps in which the learning rate falls linearly.",
        unit="share of the horizon",
        low=0,
        high=1,
    )
    final_lr_frac: float = setting(
        0.0,
        "Learning rate at the end, as a share of its peak.",
        unit="share of the peak",
        low=0,
        high=1,
    )
    eval_every: int = setting(
        0,
        "Steps between validation losses; 0: only first and last.",
        unit="steps",
        low=0,
    )
    checkpoint_every: int = setting(
        100,
        "Steps between checkpoints to resume from; 0: none.",
        unit="steps",
        low=0,
    )
    sources: tuple[str, ...] = setting(
        (),
        "Conversation files by stem; empty: all in the folder. NAME*3 is read three times for "
        "each time of the others.",
    )


@dataclass(frozen=True)
class ChatEval:
    """Questions to the chat model."""

    tasks: tuple[str, ...] = setting(
        (),
        "Question files by stem; empty: all that this trainer can score.",
    )
    hours: float = setting(
        0,
        "Hours planned for the questions. A slow card then asks as many of them, drawn at random, "
        "as the time left allows; 0: all questions, or the stage fails at the deadline.",
        unit="h",
        low=0,
        high=168,
    )
    max_per_task: int = setting(
        -1,
        "Questions per task; -1: all.",
        unit="questions",
        low=-1,
    )
    max_new_tokens: int = setting(
        256,
        "Longest answer in tokens.",
        unit="tokens",
        low=1,
        high=8192,
    )
    run_programs: bool = setting(
        False,
        "Score HumanEval by running the programs that the model writes, each in a process without "
        "network, files to write or other processes.",
    )

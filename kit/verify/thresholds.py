"""Every number a check compares with, and where it comes from.

Those marked provisional stand until ten reference runs on three cards replace them.
"""

from __future__ import annotations

# --- clocks (V05, V06, V08) ---------------------------------------------------------------------
# Rule 4 of the clock rules: the clocks agree within 0.5 %.
CLOCK_SHARE = 0.005
# /proc/uptime counts in hundredths; a sample of five clocks takes well under a tenth of a second,
# except on a machine that swaps.
CLOCK_SLACK_S = 0.25
# NTP slews at most 500 ppm; a step of the wall clock (a time zone mended after boot) is a warning.
WALL_STEP_WARN_S = 5.0
# The wall clock and the run's are slewed together; between jumps they differ by rounding. Twice
# NTP's 500 ppm leaves room for guests whose host sets their clock in small steps.
WALL_DRIFT_SHARE = 0.001
WALL_JUMP_S, WALL_JUMPS = 0.5, 5
# /proc/uptime is the run's own clock in hundredths.
UPTIME_SHARE = 0.0001
# A hardware clock counts whole seconds and drifts by up to 100 ppm; it is set at shutdown.
RTC_SLACK_S, RTC_SHARE = 30.0, 0.0005
# The raw clock stands still in suspend; less than this is no sleep but a disagreement.
SLEEP_MIN_S = 2.0
# A longer silence between steps wants an evaluation, a checkpoint or a resume to explain it.
GAP_MIN_S = 60.0
GAP_MEDIANS = 5.0
# A machine that stands still this long on its own clock, telemetry included, is worth a warning.
STALL_S = 180.0
# Step reports that may be in the pipe when the supervisor is killed. A trainer that follows its
# request's `resume_step` repeats those steps, if it has a checkpoint before them.
LOST_STEPS = 12

# --- course (V27) -------------------------------------------------------------------------------
# A verifier's own clock may be a little slow.
FUTURE_S = 3600.0
# Between the last stage's deadline with its grace and `run_stop` outputs are hashed.
OVERTIME_S = 900.0
# Versions of the kit that runs may have been made with, besides the verifier's own.
RELEASED_VERSIONS = ("0.1.0",)
# Digests of the images that were published with a version (V09).
PUBLISHED_IMAGES: tuple[str, ...] = ()

# --- training (V28) -----------------------------------------------------------------------------
# Both sides compute the schedule in double precision from the logged progress.
LEARNING_RATE_ROUNDING = 1e-6
# Progress is read a moment before the step it belongs to; a busy machine makes the moment long.
PROGRESS_SLACK_S = 60.0
# Bytes and the special tokens: less than this is no byte-level vocabulary.
VOCABULARY_LEAST = 256
# NVML and CUDA count a card's memory a few per cent apart.
DEVICE_MEMORY_SLACK = 1.02

# --- scope (V29) --------------------------------------------------------------------------------
# A parquet file has two magic words and a footer; nothing smaller holds a row.
LEAST_FILE_BYTES = {".parquet": 64, ".jsonl": 2}
# Tokens a stored byte of training text. Compressed parquet gives about one a byte and pass; small
# corpora are read many times over, the reference corpus once or twice.
TOKENS_PER_BYTE, TOKENS_PER_BYTE_CLOSED = 1000.0, 8.0
# Bytes of CORE's files a token read: four in English text, and most items follow ten examples.
CORE_BYTES_PER_TOKEN = 10.0
# The smallest stage seen took 0.22 s on two quiet cores; no Python program starts in this time.
LEAST_STAGE_S = 0.05

# --- numbers (V07) ------------------------------------------------------------------------------
# Both sides do the same arithmetic on the same bytes; this only allows for another summation order.
RELATIVE_ROUNDING = 1e-9
# Standard errors between a percentile bootstrap's ends and the normal ones: 0.03 from 10,000 draws
# (one sd), more where few items or rare answers make the draws lopsided.
INTERVAL_ERRORS = 0.35

# --- machine (V11, V12, V16) --------------------------------------------------------------------
# ARP, mDNS and the like on an idle host; model weights are a thousand times more.
IDLE_NETWORK_BYTES = 50 * 2**20
# Speed of one card repeats within 1.2 % (p90 of 201 MLPerf result sets); heat and power limit more.
BEFORE_AFTER_GPU = 0.15
# A laptop or a shared host is a noisier place than a training rig.
BEFORE_AFTER_CPU = 0.80
# NVML reports 22 to 25 GB cards to within a few hundred MiB.
POWER_LIMIT_SLACK = 1.02
# Hot enough to slow down for more than this share of the run: said, not refused.
THERMAL_SHARE_WARN = 0.2

# --- physics (V13, V14, V15) --------------------------------------------------------------------
# Boost above the reference clock; the best public 4090 measures 173.3 of 165.2 TFLOP/s (n = 9).
SPEC_PEAK_SLACK = 1.08
# Measured matmul peak: honest training does not beat it; the probe itself varies by 2 %.
MEASURED_PEAK_SLACK = 1.05
# 8-bit tensor cores run at twice the 16-bit rate.
EIGHT_BIT_FACTOR = 2.0
# Fewer steps than this may have been reported in one burst.
ROOF_MIN_STEPS = 5
# A median step shorter than this: the supervisor was held up and read many reports at once.
BURST_S = 0.01
# The CPU probe shares its machine with others, so it may see a fraction of what the run had.
CPU_PEAK_SLACK = 4.0
# Sum of the trainer's step times against the supervisor's clock.
STEP_TIME_SHARE = 0.005
STEP_TIME_SLACK_S = 1.0
# Time between steps on real machines varies by 0.08 % (median, modded-nanogpt logs) or more; the
# supervisor's stamps add microseconds. Fewer distinct intervals than this share: written, not run.
DISTINCT_INTERVALS = 0.5
MIN_STEPS_FOR_JITTER = 20
# Energy counter against integrated power: within 1 % under load (zeus issue 12), 5 % is the rule.
ENERGY_SHARE = 0.05
# A 4090 at work draws most of its limit; below this share of it while MFU is above the other
# figure, the work was done elsewhere. Provisional.
BUSY_POWER_SHARE = 0.35
BUSY_MFU = 0.20
# One sample a second; a few are lost on a busy machine.
TELEMETRY_COVERAGE = 0.90
TELEMETRY_SLACK_S = 5.0
# Telemetry and events are stamped by the same two clocks.
TELEMETRY_OFFSET_S = 2.0

# --- learning (V17) -----------------------------------------------------------------------------
# A fresh model with a zero head predicts every token alike: its first loss is ln(vocabulary).
FIRST_LOSS_NATS = 0.5
# --- noise (V30) ---------------------------------------------------------------------------------
# Scatter of a loss in units of loss / sqrt(tokens of the step): 1.4 to 2.3 in the three rows under
# submissions (made and real text, thirds of each run apart). Taking ln of it as normal with mean
# ln 1.9 and a spread of 0.35, three times the measured one, the band refuses 1 honest run in 10,000
# for too little and 1 in a million for too much.
LOSS_NOISE = (0.5, 14.0)
NOISE_MIN_STEPS = 20
# From ln(vocabulary) 20 steps take any trainer further; less than a tenth of a nat is no learning.
LEARNED_NATS = 0.1
# Made text of a few thousand stories reaches 0.7 nats in pretraining; nothing reads at a hundredth.
LOSS_FLOOR = 0.01
# Byte-level vocabularies of 1,000 to 100,000 tokens: 2.5 (code, digits) to 5.5 (plain English).
BYTES_PER_TOKEN = (1.5, 8.0)
# Where the tokenizer said its own figure: 3 % in the three rows; validation text may be of another
# kind than training text. Nine spreads: fewer than 1 in a million.
BYTES_PER_TOKEN_SHARE = 0.3
# The same figure from the first evaluation and from the last losses: apart by 1.05 in the rows.
LINKS_APART = 1.5
# The runs test: more changes than five spreads of a random order allow, 3 in 10 million tasks.
ORDER_MIN_ITEMS, ORDER_SIGMAS = 50, 5.0
# GPT-2's largest, 100 times the training, scores 0.2565; the best small models near 0.4.
CORE_CEILING = 0.40

# --- evaluation again (V22) ----------------------------------------------------------------------
# Other kernels and batch shapes turn a few ties; research asks for 99.5 % and 0.002. Provisional.
RE_EVALUATION_AGREEMENT = 0.995
RE_EVALUATION_CORE = 0.002
# A mean over thousands of answers: other kernels move its fifth digit. Provisional.
RE_EVALUATION_ANSWER_BPB = 0.002
# Research asks for 0.0005 on the same weights; sums in another order move the fifth digit.
RE_EVALUATION_BPB = 0.0005

# --- replay (V26) --------------------------------------------------------------------------------
# On one machine a CPU gives the same bits; another one's kernels round otherwise, and eight steps
# on the difference is still below the fourth digit. On a GPU bf16 sums differ in the third.
# A step's own noise, which only its batch explains, is 0.02 and more. Provisional on GPUs.
REPLAY_LOSS_CPU = 0.001
REPLAY_LOSS_GPU = 0.01

# --- contamination (V24) -------------------------------------------------------------------------
# An item is found when this share of its 13-grams (end of the question and the answer) is.
CONTAMINATED_ITEM = 0.8
# GPT-2's authors found 1 to 6 % of test sets' 8-grams in their web text (3.2 % on average); whole
# questions with answers are rarer. A planted task shows nearly all of its items. Provisional.
CONTAMINATED_WARN = 0.02
CONTAMINATED_FAIL = 0.20
CONTAMINATED_MIN_ITEMS = 20

# --- copies (V25) --------------------------------------------------------------------------------
# Noise of the same steps in two runs: independent runs of 50 steps correlate by 0.2 (one sd, as
# neighbouring values share losses); a copy with as much noise of its own added still by 0.7.
CURVE_CORRELATION = 0.6
CURVE_MIN_STEPS = 50
CURVE_SKIPPED_SHARE = 0.2
# Losses of two runs with one seed differ in the last digits on any GPU; power has milliwatts.
EQUAL_LOSSES, EQUAL_SAMPLES = 0.1, 0.3
# Right and wrong over the same items, two seeds of one recipe: expected near 0.6. Provisional.
ANSWER_CORRELATION = 0.9

# --- score (V10) ---------------------------------------------------------------------------------
# Examples and random baseline (percent) of CORE's tasks: the published bundle's files and its
# eval_meta_data.csv, version 1, which nanochat scores by.
CORE_TASKS: dict[str, tuple[int, float]] = {
    "hellaswag_zeroshot": (10042, 25),
    "jeopardy": (2117, 0),
    "bigbench_qa_wikidata": (20321, 0),
    "arc_easy": (2376, 25),
    "arc_challenge": (1172, 25),
    "copa": (100, 50),
    "commonsense_qa": (1221, 20),
    "piqa": (1838, 50),
    "openbook_qa": (500, 25),
    "lambada_openai": (5153, 0),
    "hellaswag": (10042, 25),
    "winograd": (273, 50),
    "winogrande": (1267, 50),
    "bigbench_dyck_languages": (1000, 0),
    "agi_eval_lsat_ar": (230, 20),
    "bigbench_cs_algorithms": (1320, 0),
    "bigbench_operators": (210, 0),
    "bigbench_repeat_copy_logic": (32, 0),
    "squad": (10570, 0),
    "coqa": (7983, 0),
    "boolq": (3270, 62),
    "bigbench_language_identification": (10000, 9.1),
}

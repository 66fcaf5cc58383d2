"""How much one stage may report, print and leave behind, in one place.

A stage that reaches a limit never takes the run down with it: the run ends in a signed result, or
goes on without the surplus, and the log says which. The limits fit what a verifier reads (256 MiB
of log, 10,000 values in a result) and what the board takes.
"""

from __future__ import annotations

# Reports on the events pipe.
MAX_LINE_BYTES = 65_536  # a longer line is dropped
MAX_TEXT = 2_000  # characters kept of one string
MAX_EVENTS_PER_STAGE = 200_000  # steps, evaluations, checkpoints: one more ends the stage
MAX_EVENT_BYTES_PER_STAGE = 40 * 2**20  # of these reports as they came; the same
MAX_REMARKS_PER_STAGE = 20_000  # notes and progress: further ones are dropped and counted
MAX_REMARK_BYTES_PER_STAGE = 4 * 2**20

# What a stage prints: its file keeps the beginning and the end.
MAX_PRINTED_BYTES_PER_STAGE = 16 * 2**20
PRINTED_TAIL_BYTES = 64 * 2**10

# What a stage leaves in its output folder; more makes it a failed one.
MAX_FILES_PER_STAGE = 500  # that the result lists by digest
MAX_STATE_FILES_PER_STAGE = 10_000  # below `state/`, for the run's own resume
MAX_OUTPUT_BYTES_PER_STAGE = 64 * 2**30
MAX_PATH = 400  # characters of a file's path
MAX_EVALUATION_BYTES = 16 * 2**20  # core.json, chat.json: what the board takes

# Notes of all stages that the result repeats; the log has the others too.
MAX_RESULT_NOTES = 1_000

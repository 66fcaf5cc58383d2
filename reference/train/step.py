"""One optimizer step: micro-batches, the way out when memory runs out, and what gets compiled."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.errors import TrainerError
from reference.kernels.attention import Documents, find_documents
from reference.kernels.compiling import allow_recompiles
from reference.model.cost import count_flops
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW
from reference.optim.schedule import Schedule


class Micro(NamedTuple):
    """A micro-batch: tokens and targets (B, T) int64, and where its rows' documents begin."""

    tokens: Tensor
    targets: Tensor
    documents: Documents | None = None


def train_step(
    model: GPT,
    optimizer: MuonAdamW,
    batches: Iterable[tuple[Any, ...]],
    schedule: Schedule,
    *,
    count: int | None = None,
    parts: int = 1,
    row_losses: list[Tensor] | None = None,
) -> float:
    """Mean loss in nats per target token of one step over all micro-batches.

    Every target of the step weighs the same, also when micro-batches hold unequal numbers of them.
    The weights are updated whatever the loss is: a caller that gets a NaN should stop.

    Args:
        batches: The step's micro-batches (tokens, targets[, documents]), tensors (B, T) int64 on
            the model's device; targets below 0 are ignored. Read one by one when `count` is given,
            so that packing the next overlaps with this one.
        count: Targets of the whole step, where that is known beforehand.
        parts: Run each micro-batch in this many pieces of rows, to spare memory.
        row_losses: Gets the mean loss of each row, (B,) fp32 on the device for each piece.

    Returns:
        The loss; reading it is the step's only wait for the device.
    """
    divisor: Tensor | int
    if count is None:
        batches = list(batches)
        counts = [(batch[1] >= 0).sum() for batch in batches]
        divisor = sum(counts[1:], start=counts[0])
    else:
        divisor = count
    total: Any = 0.0
    for batch in batches:
        for piece in split(Micro(*batch), parts):
            each = None
            if row_losses is not None:
                each = torch.empty(piece.targets.shape, device=piece.targets.device)
            loss = model.loss(
                piece.tokens, piece.targets, count=divisor, documents=piece.documents, each=each
            )
            loss.backward()
            if row_losses is not None and each is not None:
                row_losses.append(each.sum(1) / (piece.targets >= 0).sum(1).clamp_min(1))
            total = total + loss.detach()
    if model.step_weights is not None:
        model.step_weights.finish_gradients()
    optimizer.set_schedule(schedule)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)


def split(batch: Micro, parts: int) -> Iterator[Micro]:
    """A micro-batch in `parts` pieces of its rows, in order; fewer where it has fewer rows."""
    if parts == 1:
        yield batch
        return
    size = -(-batch.tokens.size(0) // parts)
    for first in range(0, batch.tokens.size(0), size):
        rows = slice(first, first + size)
        documents = None
        if batch.documents is not None:
            starts = batch.documents.starts[rows]
            documents = _documents_of(starts)
        yield Micro(batch.tokens[rows], batch.targets[rows], documents)


def _documents_of(starts: Tensor) -> Documents:
    """The documents of rows whose `starts` are known; waits for the device."""
    device = starts.device
    host = starts.cpu().numpy()
    begins = host == torch.arange(host.shape[1]).numpy()
    return find_documents(begins, True).to(device)


class Stepper:
    """Makes steps, and goes on with smaller micro-batches when memory runs out.

    The step that failed is done again from its first micro-batch: nothing has been updated by then,
    and the rows are the same, so the run's data and batch stay what they were.

    Args:
        parts: How many pieces each micro-batch is run in; doubled at need, and part of the state.
    """

    def __init__(self, model: GPT, optimizer: MuonAdamW, *, parts: int = 1) -> None:
        self.model, self.optimizer, self.parts = model, optimizer, parts
        self.row_losses = torch.empty(0)  # of the last step that was asked for them, on the CPU
        self.notes: list[str] = []  # what a reader of the log should know; the caller empties it

    def step(
        self,
        batches: Iterable[tuple[Any, ...]],
        schedule: Schedule,
        *,
        count: int | None = None,
        by_row: bool = False,
    ) -> float:
        """`train_step`, repeated with smaller pieces as long as memory runs out.

        With `by_row` the mean losses of the step's rows, in order, are in `row_losses` afterwards.

        Raises:
            TrainerError: One row at a time is still too much.
        """
        taken = _Replayed(batches)
        while True:
            updates = self.optimizer.updates
            rows: list[Tensor] | None = [] if by_row else None
            try:
                loss = train_step(
                    self.model,
                    self.optimizer,
                    taken,
                    schedule,
                    count=count,
                    parts=self.parts,
                    row_losses=rows,
                )
                if rows is not None:  # the step has waited for the device already
                    self.row_losses = torch.cat(rows).cpu()
                return loss
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.optimizer.updates != updates:
                    raise  # an update that has begun cannot be done again
                text = str(error).splitlines()[0]
            # Outside the handler, whose traceback keeps the failed step's tensors alive.
            self.halve(taken.rows, text)

    def halve(self, rows: int, text: str) -> None:
        """Doubles the pieces of a micro-batch of `rows` after memory ran out, `text` its message.

        Raises:
            TrainerError: One row at a time is still too much.
        """
        if self.parts >= rows:
            raise TrainerError(
                "out_of_memory",
                f"out of memory with one sequence at a time: {text}",
                "The model is too big for this card: lower n_layer, n_embd or seq_len.",
            )
        self.parts = min(rows, 2 * self.parts)
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(
            f"out of memory ({text[:200]}): micro-batches of {rows} sequences now run in"
            f" {self.parts} parts, the batch of a step stays the same"
        )


class _Replayed:
    """An iterable that can be walked again: what was read is kept until the step is done."""

    def __init__(self, batches: Iterable[tuple[Any, ...]]) -> None:
        self._source, self._read = iter(batches), []  # type: ignore[var-annotated]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield from list(self._read)
        for batch in self._source:
            self._read.append(batch)
            yield batch

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return max((batch[0].size(0) for batch in self._read), default=1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocator's refusal; the CPU's raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


# Compiling

# On a CPU the matrix products are most of a step and compiling leaves them alone: it saved 3 % of
# the smoke model's processor time and took minutes on two cores.
CPU_FLOPS = 1e11
CPU_COMPILE_PAYS_AFTER_S = 4 * 3600.0


def maybe_compile(
    model: GPT,
    setting: str,
    device: torch.device | str,
    *,
    tokens: float = 0.0,
) -> bool:
    """Compiles the model's blocks where `setting` asks for it or, for "auto", where it pays.

    That is always on a GPU; on a CPU when a C++ compiler is installed and training `tokens` tokens
    will take long. The choice is a function of its arguments and the machine, so that a resumed
    run computes as the interrupted one did. Equal blocks share one compiled graph.

    Returns:
        Whether the blocks are compiled; the compiling itself happens in the first step.
    """
    if setting == "auto":
        on_cpu = torch.device(device).type == "cpu"
        expected_s = tokens * count_flops(model.config).causal / CPU_FLOPS
        wanted = not on_cpu or (has_cpp_compiler() and expected_s > CPU_COMPILE_PAYS_AFTER_S)
    else:
        wanted = setting == "on"
    if wanted:
        compile_blocks(model)
    return wanted


def compile_blocks(model: GPT) -> None:
    """Has the blocks compiled at their next use."""
    allow_recompiles()
    for block in model.blocks:
        block.compile(dynamic=False)


def is_compiled(model: GPT) -> bool:
    """Whether `compile_blocks` was here."""
    return model.blocks[0]._compiled_call_impl is not None


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far: one more in mid-run is a stall to explain."""
    compiler = sys.modules.get("torch._dynamo.utils")  # importing it would take seconds
    return int(compiler.counters["stats"]["unique_graphs"]) if compiler else 0


def has_cpp_compiler() -> bool:
    """Whether torch.compile can build code for a CPU here."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))

"""What a run says of itself: log.jsonl for programs, a progress line for people, TensorBoard on request.

runs/<name>/log.jsonl      one JSON object a line, each with `event` and `step` (optimizer steps done):
    start, resume          what is trained on what: plan, parameters, versions
    step                   tokens, loss (nats per token of this step's batch), lr, grad_norm, tokens_per_second
    evaluation             loss (nats per token of the whole validation split), bits_per_byte, tokens, bytes
    checkpoint, end        path inside the run; whether all steps are done
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, TextIO

LOG = "log.jsonl"
PLAIN_SECONDS = 10.0


class Log:
    """log.jsonl, and TensorBoard if wanted. Continuing at a step first drops what was written beyond it."""

    def __init__(self, run: Path, step: int, tensorboard: bool) -> None:
        self.path = run / LOG
        kept = [line for line in read_log(run) if line["step"] <= step] if step else []
        partial = run / f".{LOG}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)
        self.file = self.path.open("a", encoding="utf-8")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, event: str, step: int, **values: object) -> None:
        self.file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if event in ("step", "evaluation") and isinstance(value, int | float):
                    self.board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a last one that a kill tore. [] if there is none."""
    path = Path(run) / LOG
    if not path.is_file():
        return []
    out = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):  # only a torn line, or the empty one at the end
            out.append(json.loads(line))
    return out


class Progress:
    """One line rewritten in place on a terminal; a plain line every ten seconds and at each evaluation otherwise."""

    def __init__(self, out: TextIO | None, steps: int, done: int) -> None:
        self.out, self.steps, self.first = out, steps, done
        self.started = self.shown = time.monotonic()
        self.terminal = out is not None and out.isatty()
        self.evaluation = ""

    def step(self, step: int, loss: float, speed: float) -> None:
        now = time.monotonic()
        if self.out is None or (not self.terminal and now - self.shown < PLAIN_SECONDS and step < self.steps):
            return
        self.shown = now
        left = (now - self.started) / (step - self.first) * (self.steps - step)
        text = f"step {step:,}/{self.steps:,}  loss {loss:.4f}{self.evaluation}  {speed:,.0f} tokens/s"
        text += f"  {int(left) // 60}:{int(left) % 60:02d} left"
        self.out.write(f"\r\x1b[K{text}" if self.terminal else text + "\n")
        self.out.flush()

    def validated(self, step: int, loss: float, bits_per_byte: float | None) -> None:
        bits = "" if bits_per_byte is None else f" ({bits_per_byte:.3f} bits/byte)"
        self.evaluation = f"  validation {loss:.4f}{bits}"
        if not self.terminal:
            self.say(f"step {step:,}/{self.steps:,}{self.evaluation}")

    def say(self, text: str) -> None:
        if self.out is not None:
            self.out.write(f"\r\x1b[K{text}\n" if self.terminal else text + "\n")
            self.out.flush()

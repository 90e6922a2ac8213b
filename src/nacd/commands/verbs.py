"""The subcommands: what runs each, its flags, and what it leaves for stdout.

Nothing here loads PyTorch until a command runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nacd.terminal.progress import Progress


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command leaves for stdout; progress and tables go to stderr as it runs."""

    result: Any = None
    """For --json."""
    text: str = ""
    """Without it."""
    code: int = 0
    """Exit status."""


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command."""

    run: Callable[[Any, Progress], Said]
    """From its configuration and a display to what it says; what it needs takes seconds to load."""
    configuration: str
    """The configuration's dataclass, as `module.Class` below `nacd`."""
    usual: str = ""
    """Fields that `--help` shows; `--help-all` shows all; none: both show all."""
    example: str = ""
    """A command that many will want, without `nacd`."""
    about: str = ""
    """What it does, where the configuration's docstring speaks of another command."""
    required: str = "data"
    """The one of these that has to be given, if any does."""

    def kind(self) -> type[Any]:
        """The configuration's dataclass."""
        module, _, name = self.configuration.rpartition(".")
        return getattr(import_module(f"nacd.config.{module}"), name)


def as_text(result: Any) -> str:
    """A result as JSON; what is not a finite number is null."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(plain(result), indent=2, default=str)


def _distill(config: Any, progress: Progress) -> Said:
    from nacd.commands.distill import distill, print_result

    result = distill(config, progress=progress)
    print_result(result, progress)
    progress.end()
    return Said(result, code=1 if result.faults else 0)


def _select(config: Any, progress: Progress) -> Said:
    from nacd.commands.select import select
    from nacd.report.chosen import chosen_lines

    result = select(config, progress=progress)
    progress.say(result.summary)
    for line in chosen_lines(result.folder):
        progress.say(line)
    progress.say(result.held_out)
    progress.end()
    return Said(result)


def _check(config: Any, progress: Progress) -> Said:
    from nacd.checking.said import print_checked
    from nacd.commands.check import check

    result = check(config, progress=progress)
    print_checked(result, progress.say)
    progress.end()
    return Said(result)


def _demo(config: Any, progress: Progress) -> Said:
    from nacd.commands.demo import demo

    return Said(demo(config, progress))


def _compare(config: Any, progress: Progress) -> Said:
    from nacd.commands.compare import compare, print_comparison

    result = compare(config, progress=progress)
    print_comparison(result, progress.say)
    progress.end()
    return Said(result, code=1 if result.faults else 0)


def _experts(config: Any, progress: Progress) -> Said:
    from nacd.commands.doctor import record_experts

    found = record_experts(config, progress=progress)
    for expert in found:
        progress.say(f"{expert.folder}: {len(expert.steps)} snapshots of {expert.total} steps")
    return Said([{"folder": e.folder, "steps": e.steps, "total": e.total} for e in found])


def _doctor(config: Any, progress: Progress) -> Said:
    from nacd.commands.doctor import doctor

    found = doctor(config, progress=progress)
    text = "\n\n".join(part.describe() for part in found if part)
    result = found._asdict() | {"agreement": found.agreement and found.agreement.to_dict()}
    return Said(result, text, 0 if found.estimate else 1)


def _plan(config: Any, progress: Progress) -> Said:
    from nacd.costs.planning import plan

    found = plan(config)
    return Said(found, found.describe())


def _report(config: Any, progress: Progress) -> Said:
    from nacd.report.page import write_report

    page = write_report(config)
    return Said({"page": page}, str(page))


def _runs(config: Any, progress: Progress) -> Said:
    from nacd.commands.runs import runs_text

    return Said(text=runs_text(config))


def _show(config: Any, progress: Progress) -> Said:
    from nacd.commands.runs import show_text

    return Said(text=show_text(config))


def _audit(config: Any, progress: Progress) -> Said:
    from nacd.commands.audit import audit_text

    return Said(text=audit_text(config))


def _train(config: Any, progress: Progress) -> Said:
    from nacd.commands.target import fine_tune

    result = fine_tune(config, progress)
    progress.say(
        f"{len(result.losses)} steps, loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}; "
        f"adapter: {result.adapter}"
    )
    progress.end()
    names = ("adapter", "losses", "rates", "tokens", "seconds", "notes")
    return Said({name: getattr(result, name) for name in names})


def _evaluate(config: Any, progress: Progress) -> Said:
    from nacd.commands.target import evaluate

    found = evaluate(config, progress)
    return Said(found, as_text(found))


def _label(config: Any, progress: Progress) -> Said:
    from nacd.commands.label import label

    found = label(config, progress)
    progress.say(
        f"{found.rows} rows: the teacher's own loss on their {found.response_tokens} response "
        f"tokens is {found.nll:.3f} nats each, and the {config.top} tokens kept hold "
        f"{found.kept:.1%} of its probability. Train on them with --soft-labels {found.file}"
    )
    progress.end()
    return Said(found)


def _push(config: Any, progress: Progress) -> Said:
    from nacd.export.push import push

    text = push(config)
    return Said({"said": text}, text)


_ROWS = "model data budget out heldout target max_tokens"
_TRAINING = "learning_rate batch_size epochs"

VERBS: dict[str, Verb] = {
    "check": Verb(
        _check,
        "check.CheckConfig",
        f"{_ROWS} minutes methods tune device seed",
        "check --model smollm2 --data mine.jsonl --budget 5% --minutes 10",
    ),
    "demo": Verb(_demo, "demo.DemoConfig"),
    "distill": Verb(
        _distill,
        "distill.DistillConfig",
        f"{_ROWS} {_TRAINING} outer_steps compare device seed",
        "distill --model smollm2 --data mine.jsonl --budget 5% --out runs/mine",
    ),
    "select": Verb(
        _select,
        "commands.SelectConfig",
        f"method {_ROWS} dedup stratify group_column device seed",
        "select --method rds+ --model smollm2 --data mine.jsonl --budget 5%",
    ),
    "compare": Verb(
        _compare,
        "compare.CompareConfig",
        "methods budgets model target_models data out heldout trainings runs "
        f"{_TRAINING} device seed",
        "compare --methods random rds+ full --budgets 2% 5% --data mine.jsonl",
    ),
    "experts": Verb(
        _experts,
        "distill.DistillConfig",
        "model data out heldout experts expert_rate expert_epochs expert_batch snapshot_every "
        "expert_from device seed",
        "experts --model smollm2 --data mine.jsonl --experts 2 --out runs/mine",
        "`nacd experts`: record expert trajectories into --out; `nacd distill --objective "
        "trajectory` with the same flags uses them.",
    ),
    "plan": Verb(
        _plan,
        "commands.PlanConfig",
        "model rows tokens max_tokens budget gpu_memory tflops dtype micro_tokens "
        "gradient_checkpointing engine window batch_size epochs outer_steps",
        "plan --model Qwen/Qwen3-0.6B --rows 5000 --tokens 200 --gpu-memory 24GB",
        required="",
    ),
    "doctor": Verb(
        _doctor,
        "distill.DistillConfig",
        f"model data budget dtype max_tokens {_TRAINING} outer_steps window "
        "gradient_checkpointing device",
        "doctor --model smollm2 --data mine.jsonl --budget 5%",
        "`nacd doctor`: which meta-gradient engine is right on this model and these rows, "
        "and what the outer steps of `nacd distill` take with the same flags. It writes nothing.",
    ),
    "report": Verb(_report, "commands.ReportConfig"),
    "runs": Verb(_runs, "commands.RunsConfig"),
    "show": Verb(_show, "commands.ShowConfig"),
    "audit": Verb(_audit, "commands.AuditConfig"),
    "train": Verb(
        _train,
        "commands.TrainConfig",
        f"model data out max_tokens {_TRAINING} shuffle soft_labels lora_rank "
        "gradient_checkpointing device seed",
        "train --model smollm2 --data runs/mine/dataset/train.jsonl --no-shuffle",
    ),
    "label": Verb(
        _label,
        "commands.LabelConfig",
        "model adapter data out top template columns max_tokens dtype device",
        "label --adapter runs/all/adapter --data runs/mine/dataset/train.jsonl",
    ),
    "push": Verb(_push, "commands.PushConfig"),
    "evaluate": Verb(
        _evaluate,
        "commands.EvaluateConfig",
        "model adapter data tasks shots choices max_tokens out dtype device",
        "evaluate --adapter runs/train/adapter --data heldout.jsonl",
        required="",
    ),
}

"""The command line: a subcommand a verb, the fields of configuration dataclasses its flags."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacd.errors import UserError

if TYPE_CHECKING:
    from nacd.terminal.progress import Progress

USAGE = """usage: nacd COMMAND [flags]      (nacd COMMAND --help shows the usual flags)

  check      how many rows do you need, and does a choice beat random ones?
  demo       a check and a short distillation of real data, offline
  distill    distil a data set to a few per cent of its rows, as text
  select     choose real rows instead (RDS+, LESS, k-center, BM25, ...)
  compare    methods x budgets x target models x trainings, in one table
  experts    record expert trajectories of training on the full data
  plan       does a distillation fit a card, before anything is loaded
  doctor     which engine is right for this model, and what a run costs
  report     one self-contained HTML page of a run
  runs       the run folders there are, with state and result
  show       figures and rows of one run: distilled, chosen or recommended
  audit      copies of other rows, addresses and keys in a run's data set
  train      fine-tune a model on a data set (TRL's SFTTrainer, LoRA)
  push       upload a run's data set to the hub (a dry run without --yes)
  evaluate   held-out response NLL, and multiple-choice accuracy (lm-eval)

  --help-all      with any command: all of its flags
  --json          with any command that has a result: the result as JSON
  --yes           begin a run of more than an hour without asking
  --config FILE   settings from a run.yaml; flags beside it override them

  nacd check   --model smollm2 --data mine.jsonl --budget 5% --minutes 10
  nacd distill --model smollm2 --data mine.jsonl --budget 5% --out runs/mine"""


ANEW = ("doctor", "plan", "evaluate", "train", "push", "report", "runs", "show", "audit")
"""Commands that keep nothing of a call that was stopped."""
GOES_ON = "What is done is kept; the same command goes on from there."
ASKING = ("check", "distill", "select", "compare", "doctor", "train")
"""Commands that ask on a terminal before a run of more than an hour; --yes: they do not."""
SPREADING = ("distill", "select", "compare", "experts")
"""Commands that several processes may run together."""
OWN_JSON = ("runs", "show", "audit")
"""Commands for which --json is a field of their configuration."""


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


def _quiet_libraries() -> None:
    """Leave the terminal to our own display; real warnings of ours are plain lines."""
    for key, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(key, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's own bar
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft)\b.*")
    if "transformers" in sys.modules:  # else it reads the variables when it is loaded
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if args[0] in ("-V", "--version"):
        from nacd.store.run import versions

        print(f"nacd {versions()['nacd']}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        from nacd.commands.flags import near

        print(f"nacd: no command {verb!r}{near(verb, [*VERBS])}\n\n{USAGE}", file=sys.stderr)
        return 2
    from nacd.store import processes

    error: str | None = "a fault of this program"
    try:
        code, error = _run(verb, rest)
        if error is not None and processes.rank() == 0:
            print(error, file=sys.stderr)
        processes.end(error)
        return code
    except processes.Lost as lost:
        error = ""
        if lost.speaks:
            print(f"nacd {verb}: {lost}", file=sys.stderr)
        return 1
    finally:
        processes.end(error)


def _run(verb: str, rest: Sequence[str]) -> tuple[int, str | None]:
    """One command's exit status, and what is said where it has not ended well."""
    from nacd.store import processes

    try:
        _quiet_libraries()
        as_json = "--json" in rest and verb not in OWN_JSON
        asks = verb in ASKING and "--yes" not in rest
        own = {"--json"} if as_json else set()
        own |= {"--yes"} if verb in ASKING else set()
        config, said_of_it = _configured(verb, [arg for arg in rest if arg not in own])
        if hasattr(config, "check"):  # before PyTorch is loaded
            config.check()
        if processes.launched() and verb not in SPREADING:
            raise UserError(
                "it runs in one process; start it without accelerate launch or torchrun, which "
                f"are for nacd {', '.join(SPREADING)}."
            )
        if verb != "distill" and getattr(getattr(config, "model", None), "shard", False):
            raise UserError("--shard: is for nacd distill; leave it out.")
        processes.start()
        from nacd.terminal.progress import Progress

        first = processes.rank() == 0
        progress = Progress(quiet=not first, asks=asks and first)
        if said_of_it:
            progress.say(said_of_it)
        said = VERBS[verb].run(config, progress)
        if first and (as_json or said.text):
            print(_json(said.result) if as_json else said.text)
        return said.code, None
    except UserError as error:
        return 1, f"nacd {verb}: {error}"
    except processes.Lost:
        raise
    except KeyboardInterrupt:
        how = "The same command starts anew." if verb in ANEW else GOES_ON
        return 130, f"\nnacd {verb}: stopped. {how}"
    except (MemoryError, RuntimeError) as error:
        from nacd.store.memory import is_out_of_memory

        if not is_out_of_memory(error):
            if lost := processes.broken(error):
                raise lost from error
            raise
        kept = "" if verb in ANEW else "What is done is kept. "
        return 1, (
            f"nacd {verb}: the device is out of memory. {kept}Give a smaller --micro-tokens or "
            "--max-tokens, or --gradient-checkpointing."
        )
    except BrokenPipeError:  # `nacd ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141, None
    except OSError as error:
        from nacd.store.files import UNWRITABLE

        if error.errno == errno.ENOSPC:
            how = (
                "no space left. What was written before is whole; free some space and run the same "
                "command again."
            )
        elif error.errno in UNWRITABLE and error.filename:
            how = f"not permitted ({error.strerror}); mend its permissions, or give another path."
        else:
            raise
        return 1, f"nacd {verb}: {error.filename or 'the disk'}: {how}"


def _configured(verb: str, args: Sequence[str]) -> tuple[Any, str]:
    """A command's configuration, and a line on where settings come from that no flag has given.

    `train` takes what a data set's own file says, and flags over it.
    """
    config = parse(verb, args)
    if verb != "train" or any(arg.partition("=")[0] == "--config" for arg in args):
        return config, ""
    data = config.data.data
    if not data:
        return config, ""
    from nacd.export.own_recipe import own_recipe, recipe_line

    file = own_recipe(Path(data))
    if file is None:
        return config, ""
    config = parse(verb, ["--config", str(file), *args])
    return config, recipe_line(config.recipe, config.model, file)


def parse(verb: str, args: Sequence[str]) -> Any:
    """The configuration that a command's flags give.

    Raises:
        UserError: a file that `--config` names cannot be used.
        SystemExit: help was asked for, or a flag cannot be read; it has been said.
    """
    from nacd.commands import flags

    entry = VERBS[verb]
    kind = entry.kind()
    about = entry.about or (kind.__doc__ or "")
    if entry.usual and {"-h", "--help"} & set(args):
        print(f"{textwrap.fill(about, 80)}\n\n  nacd {entry.example}\n")
        flags.print_usual(kind, verb, entry.usual.split(), entry.required)
        print(f"These are the usual flags; `nacd {verb} --help-all` shows all of them.")
        raise SystemExit(0)
    return flags.parse(kind, verb, args, description=about)


def _json(result: Any) -> str:
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
    return Said(found, _json(found))


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
        "model rows tokens max_tokens budget gpu_memory tflops dtype quantize micro_tokens "
        "gradient_checkpointing engine window batch_size epochs outer_steps",
        "plan --model Qwen/Qwen3-0.6B --rows 5000 --tokens 200 --gpu-memory 24GB",
        required="",
    ),
    "doctor": Verb(
        _doctor,
        "distill.DistillConfig",
        f"model data budget dtype quantize max_tokens {_TRAINING} outer_steps window "
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
        f"model data out max_tokens {_TRAINING} shuffle lora_rank gradient_checkpointing "
        "device seed",
        "train --model smollm2 --data runs/mine/dataset/train.jsonl --no-shuffle",
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

if __name__ == "__main__":
    raise SystemExit(main())

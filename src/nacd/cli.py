"""The command line: a subcommand a verb, the fields of configuration dataclasses its flags."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nacd.errors import UserError

USAGE = """usage: nacd COMMAND [flags]      (nacd COMMAND --help lists the flags)

  check      how many rows do you need, and does a choice beat random ones?
  demo       the whole pipeline, small, on a real model and data, offline
  distill    distil a data set to a few per cent of its rows, as text
  select     choose real rows instead (RDS+, LESS, k-center, BM25, ...)
  compare    methods x budgets x target models x seeds, in one table
  experts    record expert trajectories of training on the full data
  doctor     which engine is right for this model, and what a run costs
  report     one self-contained HTML page of a run
  runs       the run folders there are, with state and result
  show       figures and distilled rows of one run
  train      fine-tune a model on a data set (TRL's SFTTrainer, LoRA)
  push       upload a run's data set to the hub (a dry run without --yes)
  evaluate   held-out response NLL, and multiple-choice accuracy (lm-eval)

  --json     with any command that has a result: the result on stdout, as JSON
  --config FILE   settings from a run.yaml; flags beside it override them

  nacd check   --model smollm2 --data mine.jsonl --budget 5% --minutes 10
  nacd distill --model smollm2 --data mine.jsonl --budget 5% --out runs/mine"""


ANEW = ("doctor", "evaluate", "train", "push", "report", "runs", "show")
"""Commands that keep nothing of a call that was stopped."""
GOES_ON = "What is done is kept; the same command goes on from there."
ABOUT = {
    "doctor": "`nacd doctor`: which meta-gradient engine is right on this model and these rows, "
    "and what the outer steps of `nacd distill` take with the same flags. It writes nothing.",
    "experts": "`nacd experts`: record expert trajectories into --out; `nacd distill --objective "
    "trajectory` with the same flags uses them.",
}
"""Help of the commands that share another's flags."""
OWN_JSON = ("runs", "show")
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
        from nacd.run import versions

        print(f"nacd {versions()['nacd']}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        print(f"nacd: no command {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        _quiet_libraries()
        as_json = "--json" in rest and verb not in OWN_JSON
        said = VERBS[verb]([arg for arg in rest if not (as_json and arg == "--json")])
        if as_json:
            print(_json(said.result))
        elif said.text:
            print(said.text)
        return said.code
    except UserError as error:
        print(f"nacd {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nnacd {verb}: stopped. "
            + ("The same command starts anew." if verb in ANEW else GOES_ON),
            file=sys.stderr,
        )
        return 130
    except (MemoryError, RuntimeError) as error:
        from nacd.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        kept = "" if verb in ANEW else "What is done is kept. "
        print(
            f"nacd {verb}: the device is out of memory. {kept}Give a smaller --micro-tokens or "
            "--max-tokens, or --gradient-checkpointing.",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # `nacd ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"nacd {verb}: {error.filename or 'the disk'}: no space left. What was written before "
            "is whole; free some space and run the same command again.",
            file=sys.stderr,
        )
        return 1


def _parse(kind: type[Any], verb: str, args: Sequence[str]) -> Any:
    """Flags to a configuration; `--config FILE` gives the values that flags then override."""
    import tyro
    import yaml

    from nacd.settings import from_dict

    rest, default = list(args), None
    for i, arg in enumerate(rest):
        name, equals, value = arg.partition("=")
        if name == "--config":
            if not equals and i + 1 == len(rest):
                raise UserError("--config: give a run.yaml after it.")
            path = Path(value if equals else rest[i + 1])
            del rest[i : i + (1 if equals else 2)]
            if not path.is_file():
                raise UserError(f"--config {path}: no such file.")
            try:
                values = yaml.safe_load(path.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise UserError(f"--config {path}: not YAML: {error}") from error
            if not isinstance(values, dict):
                raise UserError(f"--config {path}: expected a mapping of settings, as in run.yaml.")
            default = from_dict(kind, values, str(path))
            break
    options: dict[str, Any] = {} if default is None else {"default": default}
    if verb in ABOUT:
        options["description"] = ABOUT[verb]
    return tyro.cli(
        kind,
        args=rest,
        prog=f"nacd {verb}",
        config=(tyro.conf.OmitArgPrefixes,),
        **options,
    )


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


def _distill(args: Sequence[str]) -> Said:
    from nacd.config import DistillConfig
    from nacd.distilling import distill, print_result
    from nacd.progress import Progress

    progress = Progress()
    result = distill(_parse(DistillConfig, "distill", args), progress=progress)
    print_result(result, progress)
    return Said(result)


def _select(args: Sequence[str]) -> Said:
    from nacd.progress import Progress
    from nacd.selecting import SelectConfig, select

    progress = Progress()
    result = select(_parse(SelectConfig, "select", args), progress=progress)
    progress.say(result.summary)
    progress.say(f"{len(result.rows)} rows: {result.dataset / 'train.jsonl'}")
    return Said(result)


def _check(args: Sequence[str]) -> Said:
    from nacd.checking.check import check
    from nacd.checking.config import CheckConfig
    from nacd.checking.said import print_checked
    from nacd.progress import Progress

    progress = Progress()
    result = check(_parse(CheckConfig, "check", args), progress=progress)
    print_checked(result, progress.say)
    return Said(result)


def _demo(args: Sequence[str]) -> Said:
    from nacd.demo import demo
    from nacd.demo_config import DemoConfig

    result = demo(_parse(DemoConfig, "demo", args))
    return Said(result)


def _compare(args: Sequence[str]) -> Said:
    from nacd.comparison.compare import compare, print_comparison
    from nacd.comparison.config import CompareConfig
    from nacd.progress import Progress

    progress = Progress()
    result = compare(_parse(CompareConfig, "compare", args), progress=progress)
    print_comparison(result, progress.say)
    return Said(result, code=1 if result.faults else 0)


def _experts(args: Sequence[str]) -> Said:
    from nacd.commands import record_experts
    from nacd.config import DistillConfig
    from nacd.progress import Progress

    progress = Progress()
    config = _parse(DistillConfig, "experts", args)
    found = record_experts(config, progress=progress)
    for expert in found:
        progress.say(f"{expert.folder}: {len(expert.steps)} snapshots of {expert.total} steps")
    return Said([{"folder": e.folder, "steps": e.steps, "total": e.total} for e in found])


def _doctor(args: Sequence[str]) -> Said:
    from nacd.commands import doctor
    from nacd.config import DistillConfig
    from nacd.progress import Progress

    found = doctor(_parse(DistillConfig, "doctor", args), progress=Progress())
    text = "\n\n".join(part.describe() for part in found if part)
    result = found._asdict() | {"agreement": found.agreement and found.agreement.to_dict()}
    return Said(result, text, 0 if found.estimate else 1)


def _report(args: Sequence[str]) -> Said:
    from nacd.report.page import ReportConfig, write_report

    page = write_report(_parse(ReportConfig, "report", args))
    return Said({"page": page}, str(page))


def _runs(args: Sequence[str]) -> Said:
    from nacd.runs import RunsConfig, runs_text

    return Said(text=runs_text(_parse(RunsConfig, "runs", args)))


def _show(args: Sequence[str]) -> Said:
    from nacd.runs import ShowConfig, show_text

    return Said(text=show_text(_parse(ShowConfig, "show", args)))


def _train(args: Sequence[str]) -> Said:
    from nacd.progress import Progress
    from nacd.target import TrainConfig, fine_tune

    progress = Progress()
    config = _parse(TrainConfig, "train", args)
    result = fine_tune(config, progress)
    progress.say(
        f"{len(result.losses)} steps, loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}; "
        f"adapter: {result.adapter}"
    )
    names = ("adapter", "losses", "rates", "tokens", "seconds", "notes")
    return Said({name: getattr(result, name) for name in names})


def _evaluate(args: Sequence[str]) -> Said:
    from nacd.progress import Progress
    from nacd.target import EvaluateConfig, evaluate

    found = evaluate(_parse(EvaluateConfig, "evaluate", args), Progress())
    return Said(found, _json(found))


def _push(args: Sequence[str]) -> Said:
    from nacd.export.push import PushConfig, push

    text = push(_parse(PushConfig, "push", args))
    return Said({"said": text}, text)


VERBS: dict[str, Callable[[Sequence[str]], Said]] = {
    "check": _check,
    "demo": _demo,
    "distill": _distill,
    "select": _select,
    "compare": _compare,
    "experts": _experts,
    "doctor": _doctor,
    "report": _report,
    "runs": _runs,
    "show": _show,
    "train": _train,
    "push": _push,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    raise SystemExit(main())

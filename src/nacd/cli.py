"""The command line: a subcommand a verb, the fields of configuration dataclasses its flags."""

from __future__ import annotations

import errno
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacd.commands.verbs import VERBS, as_text
from nacd.errors import UserError

if TYPE_CHECKING:
    pass

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
  label      soft labels of a teacher for some rows, to train students on
  push       upload a run's data set to the hub (a dry run without --yes)
  evaluate   held-out response NLL, and multiple-choice accuracy (lm-eval)

  --help-all      with any command: all of its flags
  --json          with any command that has a result: the result as JSON
  --yes           begin a run of more than an hour without asking
  --config FILE   settings from a run.yaml; flags beside it override them

  nacd check   --model smollm2 --data mine.jsonl --budget 5% --minutes 10
  nacd distill --model smollm2 --data mine.jsonl --budget 5% --out runs/mine"""


ANEW = ("doctor", "plan", "evaluate", "train", "label", "push", "report", "runs", "show", "audit")
"""Commands that keep nothing of a call that was stopped."""
GOES_ON = "What is done is kept; the same command goes on from there."
ASKING = ("check", "distill", "select", "compare", "doctor", "train")
"""Commands that ask on a terminal before a run of more than an hour; --yes: they do not."""
SPREADING = ("distill", "select", "compare", "experts")
"""Commands that several processes may run together."""
OWN_JSON = ("runs", "show", "audit")
"""Commands for which --json is a field of their configuration."""


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
    # where it is installed, it says on every import which kernels the CPU could have
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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
            print(as_text(said.result) if as_json else said.text)
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


if __name__ == "__main__":
    raise SystemExit(main())

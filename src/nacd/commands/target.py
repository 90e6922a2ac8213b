"""A target model: fine-tune it on a data set, distilled or not, and measure it on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacd.config import ReadConfig
from nacd.config.commands import EvaluateConfig, TrainConfig
from nacd.config.limits import check_seed
from nacd.config.settings import check_values, to_dict
from nacd.costs.costs import measure
from nacd.costs.forecasts import announce, of_training
from nacd.data import Encoded, Example, encode_all, make_template, read_examples
from nacd.errors import UserError
from nacd.export import made_in_order
from nacd.model.lora import LoraModel, check_ids, load_model
from nacd.model.microbatch import settle
from nacd.statistics.intervals import few_test_rows
from nacd.store.alone import lock
from nacd.store.extras import install, installed, require
from nacd.store.files import write_json
from nacd.store.run import versions
from nacd.store.tracking import check_tracker, tracking
from nacd.terminal.progress import Progress, Tick
from nacd.training.evaluation import Accuracy, choice_accuracy, response_nll, task_accuracy

if TYPE_CHECKING:
    from nacd.training.finetune import TrainResult


def fine_tune(config: TrainConfig, progress: Progress | None = None) -> TrainResult:
    """Fine-tune on all rows of --data with TRL's SFTTrainer and save the adapter.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    check_values(config)
    config.recipe.check()
    check_seed(config.seed)
    check_tracker(config.track)
    if not 0 <= config.soft_weight <= 1:
        raise UserError(f"--soft-weight {config.soft_weight:g}: a share, from 0 to 1.")
    if config.soft_labels is not None and not config.soft_labels.is_file():
        raise UserError(
            f"--soft-labels {config.soft_labels}: no such file; `nacd label` writes one."
        )
    require("trl", "fine-tuning")
    from nacd.training.finetune import train

    if (config.out / "adapter").exists() and not config.overwrite:
        raise UserError(
            f"--out {config.out}: holds an adapter already; choose another --out, or give "
            "--overwrite to replace it."
        )
    _held = lock(config.out)  # as long as this function runs
    examples = read(config.data)
    config.recipe.check_rows(len(examples))
    if config.recipe.shuffle and made_in_order(Path(config.data.data)):
        progress.say(
            f"{config.data.data}: these rows were made to be trained on in their own order, which "
            "--shuffle gives up; give --no-shuffle (and the recipe of README.md beside them)."
        )
    with tracking(config.track, config.out, to_dict(config)) as log, ExitStack() as stack:
        ticks: list[Tick] = []

        def before(model: LoraModel, rows: Sequence[Encoded]) -> None:
            """Say what it takes, before a bar stands on the terminal."""
            if not progress.quiet:
                progress.say("measuring a step ...")
                speed = measure(model, rows, config.recipe)
                announce(of_training(model, rows, config.recipe, speed), progress)
            total = config.recipe.total_steps(len(rows))
            ticks.append(stack.enter_context(progress.stage("train", total)))

        def report(done: int, total: int, loss: float) -> None:
            ticks[0](done, loss)
            log({"loss": loss}, done)

        return train(
            config.model,
            examples,
            config.recipe,
            template=config.data.template,
            seed=config.seed,
            out=config.out,
            max_tokens=config.data.max_tokens,
            soft_labels=config.soft_labels,
            soft_weight=config.soft_weight,
            soft_prompts=config.soft_prompts,
            progress=report,
            say=progress.say,
            before=before,
        )


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Response NLL per token on all rows of --data, accuracy where they are multiple choice.

    Raises:
        UserError: a wrong input.
    """
    progress = progress or Progress(quiet=True)
    check_values(config)
    if not config.data.data and not config.tasks:
        raise UserError("give --data (a file of held-out rows), --tasks (names), or both.")
    if config.shots is not None and not config.tasks:
        raise UserError(
            f"--shots {config.shots}: is for --tasks, and none is named; the questions of --data "
            "are asked without solved ones before them."
        )
    if config.shots is not None and config.shots < 0:
        raise UserError(f"--shots {config.shots}: must be at least 0.")
    if config.tasks:
        require("lm_eval", f"--tasks {' '.join(config.tasks)}")
    examples = read(config.data) if config.data.data else []
    scored = installed("lm_eval")
    if examples and all(example.choices for example in examples) and not scored:
        progress.say(
            "These rows are multiple choice; their accuracy is left out, as it needs lm-eval: "
            f"{install('lm_eval')}"
        )
    model = load_model(config.model, config.adapter)
    for note in model.notes:
        progress.say(note)
    theta = model.zero_theta()
    template = make_template(config.data.template, model.tokenizer, examples)
    found: dict[str, Any] = {
        "model": config.model.model,
        "adapter": None if config.adapter is None else str(config.adapter),
        "template": template.describe(),
        "versions": versions(),
    }
    if examples:
        rows, kept, dropped = encode_all(template, examples, config.data.max_tokens)
        check_ids(model, rows, kept)
        if dropped.message:
            progress.say(dropped.message)
        settle(model, max(len(row) for row in rows), training=False, say=progress.say)
        nll = response_nll(model, theta, rows)
        found |= {
            "data": config.data.data,
            "rows": len(rows),
            "dropped": dropped.count,
            "response_tokens": int(nll.tokens.sum()),
            "response_nll_per_token": nll.mean,
            "response_nll_95": nll.half,
        }
        if few := few_test_rows(len(rows)):
            found["warning"] = few
            progress.say(few)
        if scored and all(example.choices for example in kept):
            accuracy = choice_accuracy(model, theta, kept, template=template, bars=True)
            found["accuracy"] = _without_answers(accuracy)
    if config.tasks:
        accuracies = task_accuracy(
            model, theta, config.tasks, template=template, shots=config.shots
        )
        found["tasks"] = [_without_answers(accuracy) for accuracy in accuracies]
    if config.out is not None:
        write_json(config.out, found)
    return found


def _without_answers(accuracy: Accuracy) -> dict[str, Any]:
    return {k: v for k, v in asdict(accuracy).items() if k not in ("correct", "template")}


def read(data: ReadConfig) -> Sequence[Example]:
    """The rows of --data.

    Raises:
        UserError: none is named, or they cannot be read.
    """
    if not data.data:
        raise UserError("--data is missing: give a JSONL, JSON, CSV or Parquet file, or a hub id.")
    return read_examples(
        data.data,
        choice_form=data.choices,
        answers=data.answers,
        columns=data.mapping() or None,
        ignore_columns=data.ignore_columns,
    )

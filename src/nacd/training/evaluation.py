"""Held-out figures of a trained theta: response NLL per token, and accuracy by lm-eval.

`response_nll` scores every label token of encoded rows. `choice_accuracy` scores the answers of
local multiple-choice rows, offline: the rows are written out as a task of lm-eval (EleutherAI's
harness), each in the words of the template that the model was trained with. `task_accuracy` runs
tasks of the harness by name; these come from the hub.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from torch import Tensor

from nacd.data import Encoded, Example, Message, Template, collate, length_buckets
from nacd.errors import UserError
from nacd.model.lora import LoraModel
from nacd.statistics.intervals import mean_error


@dataclass(frozen=True, eq=False)
class RowNll:
    """Response NLL of n rows, in their order."""

    nll: np.ndarray
    """(n,) float64: summed over the row's label tokens, in nats."""
    tokens: np.ndarray
    """(n,) int64: label tokens of the row."""

    @property
    def mean(self) -> float:
        """NLL per token over all rows (nats): the primary figure."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def half(self) -> float:
        """Half the 95 % interval of that, had other rows been drawn; infinite for one row."""
        return 1.96 * mean_error(self.nll, self.tokens)


def response_nll(
    model: LoraModel, theta: Tensor, rows: Sequence[Encoded], batch_size: int = 16
) -> RowNll:
    """Negative log likelihood of every row's label tokens at theta.

    Args:
        model: the model; its LoRA is overwritten.
        theta: (P,); `torch.zeros(P)` is the model without training.
        rows: n encoded rows.
        batch_size: rows a forward pass.

    Raises:
        UserError: no row.
    """
    if not rows:
        raise UserError(
            "no rows to evaluate on: give --data (where rows are trained on too: --heldout) a file "
            "with rows."
        )
    nll = np.zeros(len(rows))
    tokens = np.zeros(len(rows), dtype=np.int64)
    for where in length_buckets(rows, batch_size, seed=None):
        batch = collate([rows[i] for i in where], model.tokenizer.pad_token_id)
        sums, counts = model.row_nll(theta, batch)
        nll[where] = sums.cpu().double().numpy()
        tokens[where] = counts.cpu().numpy()
    return RowNll(nll, tokens)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on one task, with what it depends on."""

    task: str
    acc: float
    """Share of questions whose right answer has the largest log likelihood."""
    acc_stderr: float | None
    acc_norm: float | None
    """The same, log likelihoods divided by the answers' lengths in characters."""
    acc_norm_stderr: float | None
    n: int
    """Questions."""
    shots: int
    """Solved questions before each question."""
    template: dict[str, str]
    """As `Template.describe`."""
    lm_eval: str
    """Version of the harness."""
    correct: tuple[bool, ...] = ()
    """Whether each question was answered right (by `acc`), in order; empty for a group of tasks."""


def choice_accuracy(
    model: LoraModel,
    theta: Tensor,
    examples: Sequence[Example],
    *,
    template: Template,
    task: str = "local",
    batch_size: int = 16,
    bars: bool = False,
) -> Accuracy:
    """Accuracy on multiple-choice rows, by lm-eval, without a network.

    Args:
        model: the model; its LoRA is overwritten.
        theta: (P,).
        examples: rows with `choices` and `answer`, as `read_examples` makes them of ARC's and
            MMLU's schemas, in cloze or letter form.
        template: how the rows are written; the one that the model was trained with.
        task: name in the result.
        batch_size: most answers a forward pass; fewer where they are long.
        bars: whether lm-eval draws its progress bars, on a terminal.

    Raises:
        UserError: no row, a row that is not multiple choice, or one longer than the model reads.
    """
    from lm_eval.tasks import TaskManager

    if not examples:
        raise UserError("no questions to evaluate on: give --data a file of multiple-choice rows.")
    questions = [_question(example, template) for example in examples]
    _, lead = _written(examples[0], template)
    name = "nacd_local"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "questions.parquet"  # as JSON, choices that are dates are no texts
        parquet.write_table(pa.Table.from_pylist(questions), path)
        config = {
            "task": name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": scratch},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": lead,
            "num_fewshot": 0,
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
        }
        with _harness_model(model, theta, template, batch_size, bars) as lm:
            longest = 1
            for example, question in zip(examples, questions, strict=True):
                answer = max(question["choices"], key=len)
                length = len(lm.tok_encode(question["context"] + lead + answer))
                longest = max(longest, length)
                if length > lm.max_length:
                    shorter = len(template.as_exported(example)) - 1
                    raise UserError(
                        f"{example.source}: the question and its longest choice have {length} "
                        f"tokens, and the model reads {lm.max_length}. --max-tokens {shorter} "
                        "leaves the row out (and all that are as long); or choose another --model."
                    )
            lm.batch_size_per_gpu = max(1, min(batch_size, model.micro // longest))
            manager = TaskManager(include_defaults=False)  # indexing its own tasks takes seconds
            found = _simple_evaluate(lm, [config], task_manager=manager)
    return replace(_accuracies(found, template)[0], task=task)


def task_accuracy(
    model: LoraModel,
    theta: Tensor,
    tasks: Sequence[str],
    *,
    template: Template,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[Accuracy]:
    """Accuracy on tasks of lm-eval by name (`arc_easy`, `mmlu`); they come from the hub.

    Args:
        model: the model; its LoRA is overwritten.
        theta: (P,).
        tasks: names of tasks or groups.
        template: `chat` applies the tokenizer's chat template; a raw one leaves the words to the
            task. Recorded in the result.
        shots: solved questions before each question; None: the task's own number.
        limit: questions a task; None: all.
        batch_size: answers a forward pass.

    Raises:
        UserError: no such task, its data cannot be reached, or it has no accuracy.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise UserError(
            f"--tasks {' '.join(unknown)}: no task of lm-eval {version('lm-eval')}; `lm-eval ls "
            f"tasks` lists {len(known)} names. Questions in a file are for --data, which measures "
            "accuracy wherever rows are multiple choice."
        )
    with _harness_model(model, theta, template, batch_size, bars=True) as lm:
        try:
            found = _simple_evaluate(
                lm,
                list(tasks),
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=template.text is None,
                task_manager=manager,
            )
        except (OSError, ValueError) as error:
            mend = "Choose other tasks, or another --shots."
            if isinstance(error, OSError):
                mend = (
                    "Tasks come from the hub; without it, give --data a file of multiple-choice "
                    "questions instead."
                )
            raise UserError(
                f"--tasks {' '.join(tasks)}: lm-eval could not run ({type(error).__name__}: "
                f"{error}). {mend}"
            ) from error
    return _accuracies(found, template)


def _question(example: Example, template: Template) -> dict[str, Any]:
    if example.choices is None or example.answer is None:
        raise UserError(
            f"{example.source}: not a multiple-choice row (no choices); accuracy needs rows with "
            "`question`, `choices` and `answerKey` or `answer`."
        )
    context, _ = _written(example, template)
    return {"context": context, "choices": list(example.choices), "answer": example.answer}


def _written(example: Example, template: Template) -> tuple[str, str]:
    """The text before the response, and the spaces between the two that the response owns."""
    if template.text is None:
        written = template.written(example)
        span = written.spans[-1]
        assert span is not None  # a blank answer is no row
        return written.text[: span[0]], ""
    probe = "probe"
    row = template.row(
        replace(example, messages=(*example.messages[:-1], Message("assistant", probe)))
    )
    return row["prompt"], row["completion"].partition(probe)[0]


@contextlib.contextmanager
def _harness_model(
    model: LoraModel, theta: Tensor, template: Template, batch_size: int, bars: bool
) -> Iterator[Any]:
    """The model as lm-eval wants it, theta written into it; its mode is put back afterwards."""
    from lm_eval.models.huggingface import HFLM

    model.write(theta)
    harness: Any = HFLM  # its decorators hide the signature from the type checker
    training = model.hf.training
    try:
        with _quiet():
            lm = harness(
                pretrained=model.hf,
                backend="causal",
                tokenizer=model.tokenizer,
                batch_size=batch_size,
                mixed_precision_dtype=model.short,
                # A chat template writes its BOS itself, or wants none.
                add_bos_token=False if template.text is None else None,
            )
        if not (bars and sys.stderr.isatty()):
            for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
                setattr(lm, name, partial(getattr(lm, name), disable_tqdm=True))
        yield lm
    finally:
        model.hf.train(training)


@contextlib.contextmanager
def _replaced(module: Any, names: Mapping[str, Any]) -> Iterator[None]:
    """Other values for names of a module, for as long as the block lasts."""
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name in names:
            if name in before:
                setattr(module, name, before[name])
            else:
                delattr(module, name)


def _simple_evaluate(lm: Any, tasks: list[Any], **options: Any) -> dict[str, Any]:
    """lm-eval's results, without its description of this machine: it asks git (whose complaint
    would stand in the terminal) and a dozen other programs."""
    import lm_eval.api.task
    import lm_eval.evaluator

    run: Any = lm_eval.simple_evaluate  # as above
    described = {"get_git_commit_hash": str, "add_env_info": lambda _: None}
    silent = partial(lm_eval.api.task.tqdm, disable=True)  # writing questions out takes no time
    with (
        _quiet(),
        _replaced(lm_eval.evaluator, described),
        _replaced(lm_eval.api.task, {"tqdm": silent}),
    ):
        found = run(
            model=lm,
            tasks=tasks,
            random_seed=None,  # leave the process's generators alone
            numpy_random_seed=None,
            torch_random_seed=None,
            **options,
        )
    assert found is not None  # None on other ranks only
    return dict(found)


def _accuracies(found: dict[str, Any], template: Template) -> list[Accuracy]:
    accuracies = []
    for name, figures in found["results"].items():
        values = {key.removesuffix(",none"): value for key, value in figures.items()}
        if "acc" not in values:
            raise UserError(
                f"--tasks {name}: lm-eval reports no accuracy for it (it has "
                f"{', '.join(key for key in values if key != 'alias')}); choose a multiple-choice "
                "task."
            )
        samples = sorted(found.get("samples", {}).get(name, []), key=lambda s: s["doc_id"])
        size = found["n-samples"].get(name, {}).get("effective", values.get("sample_len", 0))
        accuracies.append(
            Accuracy(
                task=name,
                acc=float(values["acc"]),
                acc_stderr=_number(values.get("acc_stderr")),
                acc_norm=_number(values.get("acc_norm")),
                acc_norm_stderr=_number(values.get("acc_norm_stderr")),
                n=int(size),
                shots=int(found["n-shot"].get(name, 0)),
                template=template.describe(),
                lm_eval=version("lm-eval"),
                correct=tuple(bool(sample["acc"]) for sample in samples),
            )
        )
    return accuracies


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's remarks on how it is called are for its own command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

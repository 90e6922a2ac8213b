"""The 282 MMLU exemplars with rationales that the installed `lm-eval` carries in its task files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from nacd.data.choices import LETTERS, choice_example
from nacd.data.example import Example, Message
from nacd.errors import UserError
from nacd.store.extras import require

ExemplarForm = Literal["cloze", "letter", "rationale"]

_OPTION = re.compile(r"\(([A-E])\)\s*")
_ANSWER = re.compile(r"answer is \(([A-E])\)")


class _Loader(yaml.SafeLoader):
    """A safe loader that reads an unknown tag (`!function`) as nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def mmlu_exemplars(form: ExemplarForm) -> list[Example]:
    """Read the exemplars of every MMLU subject, in the order of the subjects' names.

    Args:
        form: `cloze` (question -> the right option's text), `letter` (question with options ->
            letter) or `rationale` (question with options -> the reasoning, which ends in
            "The answer is (B).").

    Raises:
        UserError: lm-eval is not installed, or its task files are not as expected.
    """
    examples: list[Example] = []
    for path in sorted(_folder().glob("mmlu_*.yaml")):
        task: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        samples = (task.get("fewshot_config") or {}).get("samples") or ()
        for number, sample in enumerate(samples, start=1):
            examples.append(_example(f"{path.name} sample {number}", sample, form))
    if not examples:
        raise UserError(
            "the installed lm-eval has no MMLU exemplars (mmlu/flan_cot_fewshot). "
            "Install lm-eval 0.4.13, or give --data a file."
        )
    return examples


def _folder() -> Path:
    require("lm_eval", "the MMLU exemplars, which lm-eval carries", "give --data a file")
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks" / "mmlu" / "flan_cot_fewshot"


def _example(source: str, sample: dict[str, str], form: ExemplarForm) -> Example:
    whole, rationale = sample["question"].strip(), sample["target"].strip()
    answers = _ANSWER.findall(rationale)
    question, options = _options(whole)
    answer = LETTERS.index(answers[-1]) if answers else len(options)
    if answer >= len(options):
        raise UserError(f"{source} of lm-eval cannot be read. Install lm-eval 0.4.13.")
    if form == "rationale":  # it speaks of "(B)", so the options stay as they are written there
        return Example((Message("user", whole), Message("assistant", rationale)), source)
    return choice_example(source, question, options, answer, form)


def _options(whole: str) -> tuple[str, list[str]]:
    """Split "question (A) a (B) b (C) c (D) d" at the last run of A to D (one sample has E)."""
    marks = list(_OPTION.finditer(whole))
    letters = "".join(mark[1] for mark in marks)
    first = letters.rfind("ABCD")
    if first < 0:
        return whole, []
    run = marks[first : first + (5 if letters.startswith("ABCDE", first) else 4)]
    stops = [*(mark.start() for mark in run[1:]), len(whole)]
    texts = [whole[mark.end() : stop].strip() for mark, stop in zip(run, stops, strict=True)]
    return whole[: run[0].start()].strip(), texts

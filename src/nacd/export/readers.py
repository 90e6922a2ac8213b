"""Rows that other trainers do not read as they stand, counted.

Read in their sources: LLaMA-Factory 0.9.5 (`data/converter.py`, `data/template.py`,
`data/formatter.py`) and Axolotl 0.19 (`prompt_tokenizers.py`). What they do to every row alike is
said in `nacd.export.trainers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nacd.export.dataset import DatasetRow

AXOLOTL, LLAMAFACTORY = "axolotl", "llamafactory"


def read_otherwise(rows: Sequence[DatasetRow]) -> dict[str, list[str]]:
    """Sentences on the rows that a trainer leaves out or changes, by trainer.

    Args:
        rows: of one form, at least one.

    Returns:
        For `axolotl` and `llamafactory` a list, empty where the trainer reads every row as it is.
        A sentence names the trainer, counts the rows, and says why.
    """
    return {
        trainer: [
            f"{about} {count} of {len(rows)} rows{why}"
            for about, why, holds in rules
            if (count := sum(map(holds, rows)))
        ]
        for trainer, rules in _RULES.items()
    }


def _turns(row: DatasetRow) -> list[tuple[str, str]]:
    """Role and content of every turn; none for a row of text."""
    return [
        (turn["role"], turn["content"])
        for part in (row.prompt, row.completion)
        if not isinstance(part, str)
        for turn in part
    ]


def _out_of_turn(row: DatasetRow) -> bool:
    """Whether the turns, after at most one of the system, are not user, assistant, user, ..."""
    roles = [role for role, _ in _turns(row)]
    if roles[:1] == ["system"]:
        del roles[0]
    return roles != ["user", "assistant"] * (len(roles) // 2)


def _empty_system(row: DatasetRow) -> bool:
    return _turns(row)[:1] == [("system", "")]


def _numbered(row: DatasetRow) -> bool:
    """Whether a user's text holds what LLaMA-Factory puts the number of the turn for."""
    if isinstance(row.prompt, str):
        return "{{idx}}" in row.prompt
    return any("{{idx}}" in content for role, content in _turns(row) if role == "user")


def _no_prompt(row: DatasetRow) -> bool:
    return row.prompt == ""


_RULES: dict[str, tuple[tuple[str, str, Callable[[DatasetRow], bool]], ...]] = {
    AXOLOTL: (("Axolotl writes no BOS token before", ", whose prompt is empty.", _no_prompt),),
    LLAMAFACTORY: (
        (
            "LLaMA-Factory leaves out",
            ": user and assistant do not speak in turn there, the user first, after at most one "
            "system turn. Some chat templates (Mistral's, Gemma's) refuse such rows.",
            _out_of_turn,
        ),
        (
            "LLaMA-Factory writes the template's own system turn, or none, in",
            ", whose system turn is empty.",
            _empty_system,
        ),
        (
            "LLaMA-Factory writes a number for `{{idx}}` in the prompts of",
            ".",
            _numbered,
        ),
    ),
}

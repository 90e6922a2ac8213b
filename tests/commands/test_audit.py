"""`nacd audit`: copies by hand-counted cases, strings by their forms, and what is left unsaid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from made_run import make_run
from nacd.cli import main
from nacd.commands.audit import WORDS, audit, copies
from nacd.data.private import E_MAIL, KEY, PHONE, found
from nacd.errors import UserError

EIGHT = "one two three four five six seven eight"
TOKEN = "hf_" + "a1B2" * 9


def lines(file: Path, pairs: Sequence[tuple[str, str]], **more: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": prompt, "completion": completion} | more for prompt, completion in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(folder: Path, kind: str) -> Path:
    """A run of the raw template `qa`, by hand: three rows beside two test rows."""
    settings = {"distilled": {"outer": {}, "budget": "3"}}.get(
        kind, {"method": "random", "budget": "3", "selection": {}}
    )
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    template = {"template": {"name": "qa", "text": "Question: {prompt}\nAnswer: {response}"}}
    (folder / "results.json").write_text(json.dumps(template))

    def written(texts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(f"Question: {prompt}\nAnswer:", f" {response}") for prompt, response in texts]

    rows = [
        (f"So {EIGHT.upper()}!", "nothing"),
        ("Whom do I ask?", f"jane.doe@example.org, or +49 30 1234567, by {TOKEN}"),
        ("What is ice?", f"{EIGHT} nine"),
    ]
    lines(folder / "dataset" / "train.jsonl", written(rows), seed_row="data/mine.jsonl:7")
    lines(folder / "splits" / "train.jsonl", written([(f"{EIGHT} nine", "x"), ("Why?", "So.")]))
    lines(folder / "splits" / "test.jsonl", written([("Of what?", f"{EIGHT}")]))
    return folder


def test_runs_of_words_are_counted_once_each() -> None:
    texts = [f"{EIGHT} nine {EIGHT} nine", "other", EIGHT, EIGHT.removesuffix(" eight")]
    others = [("a", "nothing of it"), ("b", f"{EIGHT.title()} nine."), ("c", EIGHT)]
    assert copies(texts, others, WORDS) == {0: (2, f'"{EIGHT}" (b)'), 2: (1, f'"{EIGHT}" (b)')}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("to jane.doe+x@mail.example.co.uk.", [E_MAIL]),
        ("user@localhost, a @ b, x@@y.org", []),
        ("(555) 234-5678 or 1-555-234-5678 or 030 1234567 or +44 20 7946 0958", [PHONE] * 4),
        ("2024-01-15, 01/02/2023, 3.14159265358, 1914-1918, 10,000,000,000", []),
        ("1 2 3 4 5 6 7 8 9 10; 192.168.100.100; ISBN 978-3-16-148410-0", []),
        (f"export HF_TOKEN={TOKEN}", [KEY]),
        ("AKIAIOSFODNN7EXAMPLE and ghp_" + "x" * 36, [KEY, KEY]),
        ('{"api_key": "d41d8cd98f00b204e9800998ecf8427e"}', [KEY]),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", [KEY]),
        ("my password: is what I forgot, sk-a-name-of-more-than-twenty-letters", []),
    ],
)
def test_strings_by_their_form(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in found(text)] == kinds


def test_distilled_rows_are_held_against_training_and_test_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", "distilled")
    assert main(["audit", str(run)]) == 0
    shown = capsys.readouterr().out
    # the template's own words are no copies; "What is ice?" is a run of its own, and alone
    assert "8 words of training rows, in prompts         1      1  1\n" in shown
    assert "8 words of training rows, in responses       1      2  3\n" in shown
    assert "8 words of test rows                         2      2  1, 3\n" in shown
    assert "row 2 (from mine.jsonl:7): e-mail addresses: j…@example.org\n" in shown
    assert "Look at 1 row with addresses, numbers or keys" in shown
    assert TOKEN not in shown
    assert "1234567" not in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert main(["audit", str(run), "--rows", "0"]) == 0
    assert "mine.jsonl" not in capsys.readouterr().out


def test_chosen_rows_without_test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "chosen")
    (run / "splits" / "test.jsonl").unlink()
    assert main(["audit", str(run), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (one["kind"], one["rows"]) == ("chosen", 3)
    by_name = {finding["what"]: finding for finding in one["findings"]}
    assert by_name["8 words of test rows"]["rows"] is None
    assert by_name["8 words of test rows"]["unknown"] == "no splits/test.jsonl"
    assert by_name[PHONE]["rows"] == [{"row": 2, "times": 1, "first": "+49 30…"}]


def test_a_whole_distillation_is_read(tmp_path: Path) -> None:
    (one,) = audit(make_run(tmp_path / "run"))
    assert one.kind == "distilled"
    assert [finding.unknown for finding in one.findings][:2] == ["no splits/train.jsonl"] * 2
    assert not any(finding.found for finding in one.findings)


def test_what_is_no_run_with_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        audit(tmp_path)
    with pytest.raises(UserError, match=r"no dataset/train\.jsonl.*run the command"):
        audit(make_run(tmp_path / "run", done=False))
    (tmp_path / "run" / "run.yaml").write_text("methods: []\nbudgets: []\n")
    with pytest.raises(UserError, match="a comparison, which keeps no data set"):
        audit(tmp_path / "run")

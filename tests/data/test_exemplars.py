"""The exemplars of the installed lm-eval, all of them, read as they are meant."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nacd.data import mmlu_exemplars
from nacd.data.exemplars import _options


def test_all_282_are_read_in_every_form():
    cloze, letter, rationale = (mmlu_exemplars(f) for f in ("cloze", "letter", "rationale"))
    assert len(cloze) == len(letter) == len(rationale) == 282
    for c, a, r in zip(cloze, letter, rationale, strict=True):
        assert c.source == a.source == r.source
        assert c.choices is not None
        assert c.answer is not None
        assert c.answer == a.answer
        assert c.response == c.choices[c.answer]
        assert a.response == "ABCDE"[c.answer]
        assert f"({a.response})" in r.response.splitlines()[-1][-12:]
        assert all(f"({x}) " in r.prompt for x in "ABCD")
        assert a.prompt.startswith(f"{c.prompt}\nA. {c.choices[0]}\n")


def test_one_known_exemplar():
    sample = next(e for e in mmlu_exemplars("cloze") if e.source == "mmlu_anatomy.yaml sample 1")
    question = "Which of the following is the body cavity that contains the pituitary gland?"
    assert (sample.prompt, sample.response) == (question, "Cranial")


def test_the_last_run_of_options_counts():
    text = "Of (A) and (B):\n(A) one (B) two (C) three (D) four"
    assert _options(text) == ("Of (A) and (B):", ["one", "two", "three", "four"])


@pytest.mark.slow
def test_lm_eval_is_not_imported():
    code = "import sys; from nacd.data import mmlu_exemplars as m; m('cloze'); "
    code += "assert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

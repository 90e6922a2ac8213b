"""`nacd audit`: what a run's data set gives away, before it is given away.

    copies      runs of 8 words that stand in a training row, or in a test row, as they are compared
                in `nacd.data.overlap` (lower case, no punctuation; a shorter text is one run)
    strings     e-mail addresses, phone-like numbers, API-key-like strings; see `nacd.data.private`

Prompts of distilled rows are learned, so what they copy of training rows is counted apart from
their responses, which are the starting rows' own. Chosen rows are training rows word for word; of
them, what they share with test rows is counted.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacd.commands.runs import WIDTH, visible
from nacd.config.commands import AuditConfig
from nacd.data import Example, read_examples
from nacd.data.overlap import runs
from nacd.data.private import E_MAIL, KEY, PHONE, found
from nacd.errors import UserError
from nacd.store.files import json_text, read_json, read_json_lines
from nacd.store.folder import is_check, is_comparison, is_run, is_selection

WORDS = 8
"""Words of a run that counts as copied."""
_OF_TEST = "of test rows"
STRINGS = (E_MAIL, PHONE, KEY)
_FILE, _SPLITS = "train.jsonl", "splits"


@dataclass
class Finding:
    """One line of the table."""

    what: str
    found: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Number of a row -> how often it was found in it, and the first of it."""
    unknown: str = ""
    """Why it could not be looked for; empty: it was."""

    @property
    def times(self) -> int:
        """How often it was found in all rows."""
        return sum(times for times, _ in self.found.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `rows` is None where it could not be looked for."""
        rows = [{"row": n, "times": t, "first": first} for n, (t, first) in self.found.items()]
        return {"what": self.what, "unknown": self.unknown, "rows": None if self.unknown else rows}


@dataclass(frozen=True)
class Audited:
    """The findings in one data set."""

    file: Path
    kind: str
    """`distilled` or `chosen`."""
    sources: Sequence[str]
    """Where every row comes from; empty where that is not known."""
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "file": str(self.file),
            "kind": self.kind,
            "rows": len(self.sources),
            "words": WORDS,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def audit(run: Path) -> list[Audited]:
    """Look through the data sets of a run.

    Args:
        run: the run folder of `nacd distill`, `select` or `check`.

    Raises:
        UserError: another folder, no data set yet, or a damaged file in it.
    """
    if is_comparison(run):
        raise UserError(
            f"{run}: a comparison, which keeps no data set; give the --out of `nacd distill`, "
            "`select` or `check`."
        )
    if not (is_run(run) or is_selection(run) or is_check(run)):
        raise UserError(
            f"{run}: no run folder; give the --out of `nacd distill`, `select` or `check`."
        )
    files = sorted(run.glob(f"dataset*/{_FILE}"))  # a check may have two
    if not files:
        raise UserError(
            f"{run}: no data set yet (no dataset/{_FILE}); run the command that made the "
            "folder again to go on."
        )
    results = run / "results.json"
    template = read_json(results).get("template", {}) if results.is_file() else {}
    return [_audited(file, run, str(template.get("text", "{prompt}{response}"))) for file in files]


def _audited(file: Path, run: Path, template: str) -> Audited:
    rows = [_turns(example, template) for example in read_examples(file)]
    known = [Path(str(row.get("seed_row", ""))).name for row in read_json_lines(file)]
    prompts = ["\n".join(turns[1:-1]) for turns in rows]
    responses = [turns[-1] for turns in rows]
    whole = ["\n".join(turns[1:]) for turns in rows]
    learned = is_run(run)
    findings = []
    if learned:
        train = run / _SPLITS / "train.jsonl"
        findings += [
            _copied("of training rows, in prompts", prompts, train, template),
            _copied("of training rows, in responses", responses, train, template),
        ]
    findings.append(_copied(_OF_TEST, whole, run / _SPLITS / "test.jsonl", template))
    findings += _strings(["\n".join(turns) for turns in rows])
    sources = known if len(known) == len(rows) else [""] * len(rows)
    return Audited(file, "distilled" if learned else "chosen", sources, findings)


def _turns(example: Example, template: str) -> list[str]:
    """The system turns, joined, then every other turn; without what a raw template adds."""
    head, _, rest = template.partition("{prompt}")
    middle, _, tail = rest.partition("{response}")
    system = "\n".join(m.content for m in example.messages if m.role == "system")
    turns = [m.content for m in example.messages if m.role != "system"]
    if example.verbatim:
        turns[0] = turns[0].removeprefix(head)
        turns[-2] = turns[-2].removesuffix(middle.rstrip(" "))
        turns[-1] = turns[-1].removesuffix(tail)
    return [system, *turns]


def _copied(what: str, texts: Sequence[str], file: Path, template: str) -> Finding:
    """The runs of words that rows share with those of a file, and the first of them."""
    finding = Finding(f"{WORDS} words {what}")
    if not file.is_file():
        finding.unknown = f"no {file.parent.name}/{file.name}"
        return finding
    others = (
        (Path(example.source).name, "\n".join(_turns(example, template)[1:]))
        for example in read_examples(file)
    )
    for number, (shared, first) in copies(texts, others).items():
        finding.found[number + 1] = (shared, first)
    return finding


def copies(
    texts: Sequence[str], others: Iterable[tuple[str, str]], n: int = WORDS
) -> dict[int, tuple[int, str]]:
    """Texts that share runs of n words with others: how many, and the first with the other's name.

    Args:
        texts: few enough that all of their runs fit in memory.
        others: names and texts, read once.
        n: words of a run.
    """
    holders: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        for run in runs(text, n):
            holders[run].add(number)
    shared: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    first: dict[int, str] = {}
    for name, text in others:
        for run in runs(text, n):
            for number in holders.get(run, ()):
                shared[number].add(run)
                first.setdefault(number, f'"{" ".join(run)}" ({name})')
    return {number: (len(shared[number]), first[number]) for number in sorted(shared)}


def _strings(texts: Sequence[str]) -> list[Finding]:
    findings = {kind: Finding(kind) for kind in STRINGS}
    for number, text in enumerate(texts, 1):
        for kind, masked in found(text):
            times, first = findings[kind].found.get(number, (0, masked))
            findings[kind].found[number] = (times + 1, first)
    return [*findings.values()]


def audit_text(config: AuditConfig) -> str:
    """What `nacd audit` prints.

    Raises:
        UserError: as `audit`.
    """
    audited = audit(config.run)
    if config.json:
        found = {"run": str(config.run), "datasets": [one.to_dict() for one in audited]}
        return json_text(found, indent=2)
    return "\n\n".join("\n".join(_lines(one, config.rows)) for one in audited)


def _lines(one: Audited, most: int) -> Iterator[str]:
    yield f"{one.file}: {len(one.sources):,} {one.kind} rows"
    yield ""
    yield f"{'':<40}{'rows':>6}{'times':>7}  row numbers"
    yield "-" * WIDTH
    for finding in one.findings:
        lead = f"{finding.what:<40}"
        if finding.unknown:
            yield f"{lead}{'':>6}{'':>7}  {finding.unknown}"
            continue
        numbers = textwrap.shorten(
            ", ".join(map(str, finding.found)), WIDTH - 55, placeholder=" ..."
        )
        yield f"{lead}{len(finding.found):>6}{finding.times:>7}  {numbers}".rstrip()
    details = [*_details(one)]
    if details and most > 0:
        yield ""
        for line in details[:most]:
            yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
        if len(details) > most:
            yield f"... and {len(details) - most} more (--rows {len(details)})"
    yield ""
    yield from textwrap.wrap(_headline(one), WIDTH)


def _details(one: Audited) -> Iterator[str]:
    """What was found in a row, strings first: they are what is to be taken out."""
    copied = [f for f in one.findings if f.what not in STRINGS]
    for finding in [*(f for f in one.findings if f.what in STRINGS), *copied]:
        for number, (times, first) in finding.found.items():
            source = visible(one.sources[number - 1])
            row = f"row {number}" + (f" (from {source})" if source else "")
            more = f" and {times - 1} more" if times > 1 else ""
            yield f"{row}: {finding.what}: {visible(first)}{more}"


def _headline(one: Audited) -> str:
    """What to do."""
    strings = {n for f in one.findings if f.what in STRINGS for n in f.found}
    tested = {n for f in one.findings if f.what.endswith(_OF_TEST) for n in f.found}
    said = []
    if strings:
        said.append(
            f"Look at {_rows(len(strings))} with addresses, numbers or keys before you give this "
            "data set away."
        )
    else:
        said.append("No addresses, numbers or keys were found by their form.")
    if tested:
        said.append(
            f"{_rows(len(tested))} may be copies of test rows, which would make figures on those "
            "too good."
        )
    if one.kind == "chosen":
        said.append("Chosen rows are training rows, word for word.")
    return " ".join(said)


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)

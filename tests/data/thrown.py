"""Files and rows of every shape, whole and spoilt, thrown at the reader and at chat templates.

What is thrown either comes to a result or to one `UserError`: no traceback, no hang. What is
accepted comes back whole: every text of a row stands in its messages as it was written into the
file, every character of every message in the rendered row, and every label belongs to an assistant
turn (`whole.check_whole`).

    PYTHONPATH=tests:tests/data python tests/data/thrown.py --inputs 10000 [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from chats import CHATS, TOKENIZERS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from pyarrow import parquet

from nacd.data import Example, make_template, read_examples
from nacd.errors import UserError
from whole import check_whole

UNCHECKED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
]
SLOW = 30.0
"""Seconds after which an input counts as a hang; most take some milliseconds."""
MEANINGLESS = {"id": 7, "source": "forum", "category": "open_qa"}
KEYS = (
    "content", "role", "from", "value", "weight", "train", "loss", "tool_calls", "tools", "system",
    "history", "reasoning_content", "name", "prompt", "completion", "messages", "answer", "choices",
    "input", "label", "chosen", "",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row as it is written, and the texts that must come back from it, each in one message."""

    record: dict[str, Any]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Thrown:
    """A file, and what it was made of; `rows` is empty where it was spoilt."""

    name: str
    content: bytes
    rows: tuple[Row, ...]


characters = st.one_of(
    st.sampled_from("abc xyz,.;:'\"|\t\n\\{}[]<>#-=0189"),
    st.sampled_from("\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff\u200b\xa0\xad"),
    st.sampled_from("äßéİ\u017f日本語אبn\u0303\u0301\ufb01😀👩\u200d🚀\ufffd"),
    st.characters(exclude_categories=("Cs", "Cc")),
)
pieces = st.one_of(
    st.text(characters, max_size=12),
    st.sampled_from(
        [
            "<|im_end|>", "<|im_start|>assistant\n", "</s>", "<think>\nhm\n</think>\n\n", "[/INST]",
            "{{ m.content }}", "{% endfor %}", "probe", "user", "assistant", "<eos>", "null", "NaN",
            "\r\n", "  ", '""', "=1+1", "1", "A", "2024-01-01", "true",
        ]
    ),
)  # fmt: skip
texts = st.lists(pieces, min_size=1, max_size=4).map("".join)
responses = texts.filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> Row:
    """`messages` or ShareGPT, in usual orders and unusual ones."""
    roles = draw(
        st.sampled_from(["ua", "sua", "uaua", "suaua", "uua", "auaua", "usua", "ssua", "uaaua"])
    )
    sharegpt = draw(st.booleans())
    keys = ("from", "value") if sharegpt else ("role", "content")
    names = {"s": "system", "u": "human" if sharegpt else "user", "a": "gpt"}
    names["a"] = "gpt" if sharegpt else "assistant"
    said, turns = [], []
    for role in roles:
        said.append(draw(responses if role == "a" else texts))
        turns.append({keys[0]: names[role], keys[1]: said[-1]})
    if draw(st.booleans()) and roles[0] != "s":
        said.append(draw(responses))
        column = draw(st.sampled_from(["system", "system_prompt"]))
        return Row({column: said[-1], "conversations" if sharegpt else "messages": turns}, (*said,))
    return Row({"conversations" if sharegpt else "messages": turns}, (*said,))


@st.composite
def flat(draw: st.DrawFn) -> Row:
    """Rows of texts alone, which a table can hold."""
    kind = draw(st.sampled_from(["alpaca", "pair", "choice"]))
    asked, said = draw(texts), draw(responses)
    if kind == "alpaca":
        more = draw(st.one_of(st.just(""), responses))
        record = {"instruction": asked, "input": more, "output": said}
        return Row(record, (asked, more, said) if more.strip() else (asked, said))
    if kind == "pair":
        return Row({"prompt": asked, "completion": said}, (asked, said))
    wrong = draw(st.lists(texts, min_size=1, max_size=3))
    options = [said, *wrong]
    order = draw(st.permutations(range(len(options))))
    shuffled = [options[i] for i in order]
    record = {"question": asked, "choices": shuffled, "answer": shuffled.index(said)}
    if options.count(said) > 1:
        return Row({"instruction": asked, "output": said}, (asked, said))
    return Row(record, (asked, said))


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), texts, st.just("\ud83d")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)


def spoilt(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """The value with one place in it put out of order."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return value | {draw(st.sampled_from(KEYS)): draw(anything)}
        return value | {key: spoilt(draw, value[key], depth + 1)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], spoilt(draw, value[i], depth + 1), *value[i + 1 :]]
    return draw(anything)


def as_lines(draw: st.DrawFn, records: list[dict[str, Any]]) -> tuple[str, bytes]:
    ascii_only = draw(st.booleans())
    end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    text = (
        draw(st.sampled_from(["", "\ufeff"])) + end.join(lines) + draw(st.sampled_from(["", end]))
    )
    return draw(st.sampled_from(["a.jsonl", "a.json"])), text.encode("utf-8", "surrogatepass")


def as_list(draw: st.DrawFn, records: list[dict[str, Any]]) -> tuple[str, bytes]:
    indent = draw(st.sampled_from([None, 2]))
    text = json.dumps(records, ensure_ascii=draw(st.booleans()), indent=indent)
    return draw(st.sampled_from(["a.json", "a.jsonl"])), text.encode("utf-8", "surrogatepass")


def as_table(draw: st.DrawFn, records: list[dict[str, Any]]) -> tuple[str, bytes]:
    out = io.StringIO(newline="")
    separator = draw(st.sampled_from(",;\t|"))
    quoting: Any = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    cells = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()}
        for record in records
    ]
    writer = csv.DictWriter(out, list(cells[0]), delimiter=separator, quoting=quoting)
    writer.writeheader()
    writer.writerows(cells)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return draw(st.sampled_from(["a.csv", "a.tsv"])), out.getvalue().encode(encoding, "replace")


def as_parquet(draw: st.DrawFn, records: list[dict[str, Any]]) -> tuple[str, bytes]:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(records), out)
    return "a.parquet", out.getvalue()


@st.composite
def thrown(draw: st.DrawFn) -> Thrown:
    """A file: half of them well formed, the others spoilt in a row or in their bytes."""
    shape = draw(st.sampled_from([conversations(), flat()]))
    first = draw(shape)
    rest = [draw(shape) for _ in range(draw(st.integers(0, 3)))]
    rows = [first, *(row for row in rest if row.record.keys() == first.record.keys())]
    if draw(st.booleans()):
        rows = [Row(MEANINGLESS | row.record, row.texts) for row in rows]
    records, fine = [row.record for row in rows], draw(st.booleans())
    ways = [as_lines, as_list, as_parquet]
    if all(isinstance(v, str | int) for v in first.record.values()):
        ways += [as_table, as_table]
    elif "choices" in first.record:
        ways.append(as_table)
    way = draw(st.sampled_from(ways))
    if not fine and way is not as_parquet and draw(st.booleans()):
        i = draw(st.integers(0, len(records) - 1))
        records[i] = spoilt(draw, records[i])
        if not isinstance(records[i], dict) and way is as_table:
            way = as_lines
        if way is as_table and any(record.keys() != records[0].keys() for record in records):
            way = as_lines
    name, content = way(draw, records)
    if not fine and draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        noise = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\n", b'"', b",", b"\0"])))
        content = content[:at] + noise + content[draw(st.integers(at, min(len(content), at + 9))) :]
    if draw(st.integers(0, 9)) == 0:
        name, content = f"{name}.gz", gzip.compress(content)
    return Thrown(name, content, tuple(rows) if fine else ())


@functools.cache
def tokenizer(name: str) -> Any:
    return TOKENIZERS[name]()


templates = st.one_of(
    st.sampled_from(["qa", "alpaca", "plain", "verbatim", "Q {prompt} A {response} ."]),
    st.sampled_from(sorted(CHATS)).map(lambda name: f"chat:{name}"),
)


def check_names(error: UserError, path: Path) -> None:
    """An error names the file."""
    assert path.name in str(error), f"the file is not named: {error}"


def catch(
    folder: Path, what: Thrown, name: str, made: str, turns: Any, choice_form: Any
) -> tuple[str, Sequence[Example]]:
    """Read what was thrown and render it; how it went, and its rows.

    Raises:
        AssertionError: a row that was accepted did not come back whole, or it took too long.
    """
    began = time.perf_counter()
    path = folder / what.name
    path.write_bytes(what.content)
    try:
        examples = read_examples(path, choice_form=choice_form)
    except UserError as error:
        check_names(error, path)
        return "refused in reading", []
    if what.rows:
        assert len(examples) == len(what.rows)
        for example, row in zip(examples, what.rows, strict=True):
            shown = [message.content for message in example.messages]
            for text in row.texts:
                if choice_form == "letter" and "choices" in row.record and text == row.texts[-1]:
                    letter = "ABCD"[row.record["choices"].index(text)]
                    assert example.response == letter
                    continue
                assert any(text in content for content in shown), (text, shown)
    chat = name.removeprefix("chat:") if name.startswith("chat:") else None
    writer = tokenizer(made)
    writer.chat_template = CHATS[chat].text if chat else None
    try:
        template = make_template("chat" if chat else name, writer, examples)
        for example in examples:
            check_whole(template, example, turns)
    except UserError as error:
        check_names(error, path)
        return "refused in rendering", examples
    finally:
        taken = time.perf_counter() - began
        assert taken < SLOW, f"{taken:.0f} seconds"
    return "rendered", examples


inputs = (
    thrown(),
    templates,
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from(["all", "last"]),
    st.sampled_from(["cloze", "letter"]),
)


def main() -> None:
    """Throw, and count how it went."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--inputs", type=int, default=10_000)
    flags.add_argument("--seed", type=int, default=0)
    options = flags.parse_args()
    counts: Counter[str] = Counter()
    with TemporaryDirectory() as folder:

        @seeded(options.seed)
        @settings(
            max_examples=options.inputs,
            deadline=None,
            database=None,
            suppress_health_check=UNCHECKED,
            phases=[Phase.generate, Phase.shrink],
        )
        @given(*inputs)
        def throw(what: Thrown, name: str, made: str, turns: Any, form: Any) -> None:
            counts[catch(Path(folder), what, name, made, turns, form)[0]] += 1

        throw()
    for how, count in counts.most_common():
        print(f"{how:<24}{count:>8}")


if __name__ == "__main__":
    main()

"""What holds for every row that a template accepts: it comes through whole, and its labels too."""

from __future__ import annotations

from typing import Any, Literal
from unicodedata import combining

from nacd.data import Encoded, Example, Template


def _seen(letter: str) -> bool:
    """Whether tokenizers' offsets tell where a letter is: they know no accent that is joined on."""
    return not letter.isspace() and not combining(letter)


def check_whole(
    template: Template, example: Example, turns: Literal["all", "last"] = "all"
) -> Encoded:
    """Encode a row, and hold it against its messages by the tokenizer's own offsets.

    Every character of every message stands in the row, in a place of its own, white space at its
    ends aside; an earlier assistant turn that is no label may lose its beginning, and is counted.
    No token inside a message that is not to be learned is a label, but for those of the one word
    that a raw template's border parts. Every character of an answer that is to be learned is
    covered by labels, but for those that the generation prompt says already.
    """
    written, row = template.written(example), template.encode(example, turns)
    tokenizer: Any = template.tokenizer
    tokens = tokenizer(
        written.text, add_special_tokens=template.text is not None, return_offsets_mapping=True
    )
    assert list(row.ids) == tokens["input_ids"]
    last = len(example.messages) - 1
    learned = {
        i
        for i, message in enumerate(example.messages)
        if i == last or (turns == "all" and message.role == "assistant" and message.train)
    }
    assert not learned & set(written.lost)
    assert row.shortened == len(written.lost)
    labels = [span for span, on in zip(tokens["offset_mapping"], row.response, strict=True) if on]
    assert labels
    end = 0
    for i in sorted(range(last + 1), key=lambda i: written.spans[i] or (0, 0)):
        content, span = example.messages[i].content, written.spans[i]
        if span is None:
            assert not content.strip()
            continue
        assert end <= span[0] <= span[1]
        end = span[1]
        shown = written.text[slice(*span)]
        assert (written.lost.get(i, "") + shown).strip() == content.strip()
        if i in learned:
            covered = {c for a, b in labels for c in range(a, b)}
            missed = [c for c in range(*span) if c not in covered and _seen(written.text[c])]
            if missed:
                prompt = [{"role": m.role, "content": m.content} for m in example.messages[:i]]
                asked = tokenizer.apply_chat_template(
                    prompt, tokenize=False, add_generation_prompt=True
                ).rstrip()
                assert asked.endswith(written.text[span[0] : missed[-1] + 1])
        else:
            inside = [(a, b) for a, b in labels if span[0] <= a < b <= span[1]]
            if template.text is not None:
                inside = [(a, b) for a, b in inside if written.text[a : span[1]].split()[1:]]
            assert not inside
    if row.lead:
        assert template.text is None
        assert row.lead in written.text[: (written.spans[last] or (0, 0))[0]]
    return row

"""From the value of --template to the way rows are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jinja2

from nacd.data.example import Example
from nacd.data.rendering import RAW_TEMPLATES
from nacd.data.template import Template
from nacd.data.written import FAULTS
from nacd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_template(
    name: str, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> Template:
    r"""Choose the way rows are written.

    Args:
        name: `chat` (the tokenizer's own), `qa`, `alpaca`, `plain`, a text that holds `{prompt}`
            and `{response}` (`\n` and `\t` in it stand for a line break and a tab), or `auto`:
            `verbatim` for `prompt`/`completion` strings (as TRL joins them), `qa` for multiple
            choice, else `chat` if the tokenizer has one, else `alpaca`.
        tokenizer: a fast tokenizer (it must tell which characters a token covers).
        examples: the rows, which `auto` looks at.

    Raises:
        UserError: no such template, no chat template or a broken one, a slow tokenizer, or none
            with an end token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot tell which characters a token "
            "covers: expected a fast one (tokenizer.json). Save it as such, or choose another "
            "--model."
        )
    added = tokenizer.added_tokens_decoder
    special = frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}
    if name == "auto":
        if examples and all(example.verbatim for example in examples):
            name = "verbatim"
        elif examples and all(example.choices is not None for example in examples):
            name = "qa"
        else:
            name = "chat" if tokenizer.chat_template else "alpaca"
    if name == "chat":
        _check_chat_template(tokenizer)
        return Template("chat", None, tokenizer, special)
    text = RAW_TEMPLATES.get(name)
    if text is None:
        text, name = name.replace("\\n", "\n").replace("\\t", "\t"), "custom"
        head = text.partition("{prompt}")[0]
        once = text.count("{prompt}") == text.count("{response}") == 1
        if not once or "{response}" in head:
            raise UserError(
                f"--template {text!r} is neither auto, chat, {', '.join(RAW_TEMPLATES)} nor a text "
                "with one {prompt} and, after it, one {response}."
            )
    if not tokenizer.eos_token:
        raise UserError(
            f"--template {name} ends a row with the tokenizer's end-of-sequence token, and it has "
            "none. Set eos_token in tokenizer_config.json, or choose --template chat."
        )
    return Template(name, text, tokenizer, special)


def _check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers import PreTrainedTokenizerBase

    if not tokenizer.chat_template:
        raise UserError(
            "--template chat, but the model's tokenizer has no chat template. "
            "Choose --template qa, alpaca, plain, or a text with {prompt} and {response}."
        )
    instead = (
        "choose another --model, or a raw --template (qa, alpaca, plain, or a text with {prompt} "
        "and {response})."
    )
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) writes chats in a way of its own: "
            f"expected one that renders its chat template. Save it as a plain fast one, {instead}"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise UserError(
            f"the model's tokenizer has several chat templates ({names}), and none is named "
            f"`default`. Name one of them so in its folder, {instead}"
        ) from None
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template is not valid Jinja (line {error.lineno}: "
            f"{str(error.message).rstrip('.')}). "
            f"Mend chat_template.jinja (or `chat_template` in tokenizer_config.json), {instead}"
        ) from None
    except FAULTS:  # it may want a system message, or refuse such a short conversation
        pass

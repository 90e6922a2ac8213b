"""Equations of the pages: `$...$` in a line and `$$...$$` alone, from LaTeX to MathML.

Browsers draw MathML themselves, so that the site needs no script and no font for it. Code, fenced
or in backticks, is left as it is.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

DISPLAY = r"\$\$(.+?)\$\$"
INLINE = r"(?<![\\\w$])\$(?![\s$])([^$\n]+?)(?<!\s)\$(?![\w$])"
BELOW_CODE = 185
"""Backticks are taken at 190, escapes at 180: LaTeX keeps its backslashes."""


class _Equation(InlineProcessor):
    """A run of LaTeX, kept from every later pattern."""

    def __init__(self, pattern: str, display: Literal["block", "inline"], md: Markdown):
        super().__init__(pattern, md)
        self.compiled_re = re.compile(pattern, re.DOTALL)
        self.display: Literal["block", "inline"] = display
        self.stash = md.htmlStash

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        """The MathML, stashed."""
        mathml = convert(" ".join(m[1].split()), display=self.display)
        return self.stash.store(mathml), m.start(0), m.end(0)


class Equations(Extension):
    """The Markdown extension."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Put both forms in front of everything but code."""
        block, inline = _Equation(DISPLAY, "block", md), _Equation(INLINE, "inline", md)
        md.inlinePatterns.register(block, "equation", BELOW_CODE + 1)
        md.inlinePatterns.register(inline, "equation-inline", BELOW_CODE)


def on_config(config: Any) -> Any:
    """Hook of mkdocs: every page is read with the extension."""
    config.markdown_extensions.append(Equations())
    return config

"""Some hundreds of the inputs of `thrown`; its own command throws thousands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import seed as seeded
from thrown import UNCHECKED, Thrown, catch, inputs


@pytest.mark.slow
def test_what_is_thrown_is_a_right_result_or_one_error(tmp_path: Path) -> None:
    seen: set[str] = set()

    @seeded(0)
    @settings(
        max_examples=400,
        deadline=None,
        database=None,
        suppress_health_check=UNCHECKED,
        phases=[Phase.generate],
    )
    @given(*inputs)
    def throw(what: Thrown, name: str, made: str, turns: Any, form: Any) -> None:
        seen.add(catch(tmp_path, what, name, made, turns, form)[0])

    throw()
    assert seen == {"refused in reading", "refused in rendering", "rendered"}

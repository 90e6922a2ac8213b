"""Things made once: of this, of something else, of older versions, damaged, or misplaced."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nacd.errors import UserError
from nacd.store.cache import Cache, read_of
from nacd.store.files import write_json, write_tensors


def numbered() -> Callable[[], dict[str, Tensor]]:
    """Makes 0, then 1, then 2."""
    made = iter(range(9))
    return lambda: {"number": torch.tensor(next(made))}


def test_a_result_reads_the_same_the_first_time_and_later(tmp_path: Path) -> None:
    folder = Cache(tmp_path)
    first = folder.once("tuning", lambda: {"nll": [(1e-3, math.nan)]})
    assert first == {"nll": [[1e-3, None]]}
    assert folder.once("tuning", lambda: {"nll": "made anew"}) == first


def test_a_result_of_something_else_is_made_anew(tmp_path: Path) -> None:
    folder, made = Cache(tmp_path), iter(range(9))

    def make() -> dict[str, Any]:
        return {"number": next(made)}

    assert [folder.once("a", make, of=of)["number"] for of in "xxyyx"] == [0, 0, 1, 1, 2]
    write_json(tmp_path / "b.json", {"number": "of an older version"})
    assert folder.once("b", make, of="z")["number"] == "of an older version"


def test_tensors_are_made_once(tmp_path: Path) -> None:
    """They are the same to the bit the first time and later, and detached both times."""
    made = {"a": torch.randn(2, 3, requires_grad=True), "b": torch.ones(2, dtype=torch.float16)}
    for _ in range(2):
        found = Cache(tmp_path).tensors("x", lambda: made, of={"of": "x"})
        assert found.keys() == made.keys()
        assert all(torch.equal(found[name], made[name]) for name in made)
        assert not found["a"].requires_grad
    read, said = read_of(tmp_path / "x.safetensors", {"of": "x"})
    assert torch.equal(read["b"], made["b"])
    assert said == {"of": "x"}


def test_tensors_of_something_else(tmp_path: Path) -> None:
    """They are made anew where that is asked for, and otherwise refused with what differs."""
    folder, make = Cache(tmp_path), numbered()
    keys = [{"student": number} for number in "001"]
    assert [int(folder.tensors("a", make, of=of, anew=True)["number"]) for of in keys] == [0, 0, 1]
    said = r"a\.safetensors: made with other settings \(student: '1' there, '2' now\).* or delete"
    with pytest.raises(UserError, match=said):
        folder.tensors("a", make, of={"student": "2"})
    with pytest.raises(UserError, match=said):
        read_of(tmp_path / "a.safetensors", {"student": "2"})
    assert int(folder.tensors("a", make, of={"student": "1"})["number"]) == 1


def test_tensors_that_do_not_say_what_they_are_of(tmp_path: Path) -> None:
    """Those of an older version are read if all that they lack was not said then."""
    write_tensors(tmp_path / "a.safetensors", {"number": torch.tensor(7)}, {"rows": "r"})
    folder, make, of = Cache(tmp_path), numbered(), {"rows": "r", "model": "m"}
    assert int(folder.tensors("a", make, of=of, lately=("model",))["number"]) == 7
    with pytest.raises(UserError, match=r"made with other .*\(model: nothing there, 'm' now\)"):
        folder.tensors("a", make, of=of)
    assert int(folder.tensors("a", make, of=of, anew=True)["number"]) == 0


def test_damaged_tensors_and_those_in_another_place_are_named(tmp_path: Path) -> None:
    folder, of = Cache(tmp_path), {"of": "x"}
    for name in "ab":
        folder.tensors(name, numbered(), of=of)
    file = tmp_path / "a.safetensors"
    content = file.read_bytes()
    for harm in (content[:-5], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(harm)
        with pytest.raises(UserError, match=r"a\.safetensors: damaged .*delete it, and run"):
            folder.tensors("a", numbered(), of=of, anew=True)
    shutil.copy(tmp_path / "b.safetensors", file)
    with pytest.raises(UserError, match=r"a\.safetensors: .* it was written as b\.safetensors"):
        folder.tensors("a", numbered(), of=of)


def test_a_folder_belongs_to_what_it_was_begun_for(tmp_path: Path) -> None:
    folder, torn = Cache(tmp_path), tmp_path / ".a.partial-1"
    of = {"model": {"name": "m", "sha256": "1"}, "rows": ["a", "b"], "how": "budget 8, seed 0"}
    key = folder.belongs("manifest", of)
    torn.write_text("of a process that was killed")
    assert folder.belongs("manifest", of) == key
    assert not torn.exists()
    other = {"model": {"name": "n", "sha256": "2"}, "rows": ["a"], "how": "budget 9, seed 0"}
    with pytest.raises(UserError) as refused:
        folder.belongs("manifest", other)
    assert (
        "manifest.json: made with other settings (budget 8 there, budget 9 now; model.name: "
        in (str(refused.value))
    )
    for part in ("'m' there, 'n' now; rows: 2 of hash", f"or delete {tmp_path} to make it anew"):
        assert part in str(refused.value)
    assert "sha256" not in str(refused.value), "it follows from the rest"
    with pytest.raises(UserError, match=r"model\.sha256: '1' there, '3' now"):
        folder.belongs("manifest", of | {"model": {"name": "m", "sha256": "3"}})
    for text in ("{", "[]"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: (damaged|not JSON).* delete it"):
            folder.belongs("manifest", of)

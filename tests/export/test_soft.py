from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nacd.errors import UserError
from nacd.export import read_soft_prompts, write_soft_prompts
from nacd.store.files import write_tensors, write_text


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "soft_prompts.safetensors"
    vectors = torch.randn(3, 4)
    rows = [[-1, 0, 1, -1], [], [2, -1]]
    write_soft_prompts(path, vectors, rows, ["a", "b", "c"], {"model": "owner/model"})
    found = read_soft_prompts(path)
    assert torch.equal(found.vectors, vectors)
    assert (found.rows, found.seeds) == (rows, ["a", "b", "c"])
    assert found.metadata == {"model": "owner/model"}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "soft_prompts.safetensors"
    with pytest.raises(ValueError, match="slots run from 0 to 3"):
        write_soft_prompts(path, torch.zeros(3, 4), [[0, 3]], ["a"])
    with pytest.raises(ValueError, match="1 rows but 2 starting rows"):
        write_soft_prompts(path, torch.zeros(3, 4), [[0]], ["a", "b"])
    with pytest.raises(UserError, match="no such file"):
        read_soft_prompts(path)
    write_tensors(path, {"x": torch.zeros(1)})
    with pytest.raises(UserError, match="not soft prompts"):
        read_soft_prompts(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        read_soft_prompts(path)


def test_a_tensor_file_may_be_read_by_whom_a_text_file_may(tmp_path: Path) -> None:
    tensors, text = tmp_path / "a.safetensors", tmp_path / "a.txt"
    write_tensors(tensors, {"a": torch.zeros(2)})
    write_text(text, "a")
    assert tensors.stat().st_mode == text.stat().st_mode

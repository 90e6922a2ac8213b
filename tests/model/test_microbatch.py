"""Parts that fit in the memory: how many tokens, what is kept, what happens where it runs out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nacd.config.recipe import Recipe
from nacd.data import Batch, Encoded, collate
from nacd.errors import UserError
from nacd.meta import Exact
from nacd.meta.diagnosis import diagnose
from nacd.meta.engines import Slopes
from nacd.meta.losses import EmbeddingLoss
from nacd.model import microbatch
from nacd.model.lora import LoraModel, ModelConfig, load_model
from nacd.model.microbatch import SHARE, fitting, part_bytes, settle
from nacd.model.parts import DOUBLE, MICRO_TOKENS
from nacd.model.per_row import row_gradients
from nacd.selection.hidden import last_hidden
from nacd.store import memory
from nacd.store.memory import OutOfMemory, free_memory, is_out_of_memory
from tiny import ROWS

Folder = Callable[[str], Path]


def load(folder: Path, **changes: Any) -> LoraModel:
    return load_model(ModelConfig(str(folder), **{"device": "cpu", "lora_rank": 2} | changes))


def batch_of(*lengths: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(5, ROWS - 10, (length,), generator=generator).tolist()
        response = (False,) * (length // 2) + (True,) * (length - length // 2)
        rows.append(Encoded(tuple(ids), response, (0, length // 2)))
    return collate(rows, 0)


# --- how many ---------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_parts_hold_every_row_once_within_the_bound(packed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    for most in (1, 7, 20, 64, 1000):
        lengths = torch.randint(1, 30, (17,), generator=generator).tolist()
        batch = batch_of(*lengths)
        parts = batch.parts(most, packed=packed)
        rows = [part.row(b) for part in parts for b in range(len(part.ids))]
        assert [row.ids.tolist() for row in rows] == [batch.row(b).ids.tolist() for b in range(17)]
        for part in parts:
            size = part.tokens if packed else part.ids.numel()
            assert size <= most or len(part.ids) == 1
            assert part.ids.shape[1] == part.attention.sum(1).max()


def test_parts_are_alike_in_size() -> None:
    sizes = [part.tokens for part in batch_of(*[10] * 50).parts(400, packed=True)]
    assert sizes == [250, 250]


def test_bytes_grow_with_what_a_pass_keeps(tiny_folder: Folder) -> None:
    """Per token: the layers', twice; three times the vocabulary. Squares for eager attention."""
    model = load(tiny_folder("llama"))
    needed = part_bytes(model)
    assert 2 * needed(100) <= needed(200) < 2.4 * needed(100)  # the mask grows with the square
    kept: list[int] = []  # what one layer's norms, attention and products at least keep

    def count(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            kept.append(args[0].numel() * args[0].element_size())

    for module in model.hf.modules():
        module.register_forward_hook(count)
    model.row_losses(batch_of(50, 50))
    head = 3 * ROWS * 4 * 100
    assert needed(100) > 2 * sum(kept) / 2 + head  # LoRA's A of q, k, v share their input
    assert needed(100) < 10 * sum(kept) + head
    eager = part_bytes(load(tiny_folder("llama"), attention="eager"))
    softmax = 2 * 4 * 4  # layers, heads, bytes
    squares = 2 * softmax * (2000**2 - 2 * 1000**2)
    assert eager(2000) - 2 * eager(1000) == pytest.approx(squares)
    checkpointed = part_bytes(load(tiny_folder("llama"), gradient_checkpointing=True))
    assert checkpointed(100) < needed(100)


def test_the_largest_half_that_fits() -> None:
    assert fitting(lambda s: s, 384, None) == 384
    assert fitting(lambda s: s, 384, int(384 / SHARE)) == 384
    assert fitting(lambda s: s, 384, int(383 / SHARE)) == 192
    assert fitting(lambda s: s, 384, 0) == 24


def test_free_memory_is_what_a_container_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    machine = free_memory(cpu)
    assert machine is not None
    assert free_memory(torch.device("meta")) is None

    def group(folder: Path, names: tuple[str, str], limit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(limit + "\n")
        (folder / names[1]).write_text("900\n")
        (folder / "memory.stat").write_text("inactive_file 40\ntotal_inactive_file 50\n")

    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert free_memory(cpu) == pytest.approx(machine, rel=0.2), "no control groups"
    (tmp_path / "groups").write_text("0::/mine/inner\n")
    second = ("memory.max", "memory.current")
    group(tmp_path / "mine" / "inner", second, "max")
    group(tmp_path / "mine", second, "1000")
    assert free_memory(cpu) == 1000 - 900 + 40
    (tmp_path / "groups").write_text("3:cpu,cpuacct:/\n4:memory:/not/seen/from/here\n")
    group(tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "2000")
    assert free_memory(cpu) == 2000 - 900 + 50


# --- what is kept -----------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def has(size: float) -> None:
        monkeypatch.setattr(microbatch, "free_memory", lambda device: int(size))

    return has


def test_the_choice_is_by_the_free_memory_and_is_kept(
    tiny_folder: Folder, tmp_path: Path, free: Callable[[float], None]
) -> None:
    kept = tmp_path / "memory.json"
    model = load(tiny_folder("llama"))
    name, needed = model.config.model, part_bytes(model)
    free(needed(200) / SHARE)
    settle(model, 50, kept=kept)
    assert model.micro == 192
    free(1e12)
    again = load(tiny_folder("llama"))
    settle(again, 50, kept=kept)
    assert again.micro == 192, "what the run began with"
    other = load(tiny_folder("gpt2"))
    settle(other, 50, kept=kept)
    assert other.micro == MICRO_TOKENS
    asked = load(tiny_folder("llama"), micro_tokens=77)
    settle(asked, 50, kept=kept)
    assert asked.micro == 77
    assert json.loads(kept.read_text()) == {name: 77, other.config.model: MICRO_TOKENS}


def test_a_row_that_does_not_fit_is_refused_before_the_start(
    tiny_folder: Folder, free: Callable[[float], None]
) -> None:
    model = load(tiny_folder("llama"))
    free(part_bytes(model)(120))
    settle(model, 120)
    with pytest.raises(OutOfMemory, match=r"row of 121 tokens takes .* are free: .* --max-tokens"):
        settle(model, 121)
    settle(load(tiny_folder("llama"), micro_tokens=384), 121)
    settle(model, 121, training=False)
    checkpointed = load(tiny_folder("llama"), gradient_checkpointing=True)
    free(1)
    with pytest.raises(OutOfMemory, match=r"--max-tokens, or free some memory"):
        settle(checkpointed, 121)


def test_what_is_padded_is_said(tiny_folder: Folder) -> None:
    for arch, lines in (("opt", 1), ("llama", 0)):
        said: list[str] = []
        settle(load(tiny_folder(arch)), 50, say=said.append)
        assert len(said) == lines
        assert all("batches are padded" in line for line in said)


def test_a_negative_number_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(UserError, match="--micro-tokens -1: at least 1, or 0"):
        load(tiny_folder("llama"), micro_tokens=-1)


# --- where it runs out ------------------------------------------------------------------------


def test_which_errors_are_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert is_out_of_memory(found.value), "the CPU's own words"
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def scarce(patch: pytest.MonkeyPatch, most: int) -> None:
    """Passes of more than `most` positions find no memory; those that do are halfway through."""
    lay_out = LoraModel.lay_out

    def limited(self: LoraModel, batch: Batch) -> Any:
        if batch.tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lay_out(self, batch)

    patch.setattr(LoraModel, "lay_out", limited)


WORK: dict[str, Callable[[LoraModel, torch.Tensor, Batch], torch.Tensor]] = {
    "value_and_grad": lambda m, theta, batch: m.value_and_grad(theta, batch)[1],
    "rows_and_grad": lambda m, theta, batch: m.rows_and_grad(theta, batch)[0],
    "row_nll": lambda m, theta, batch: m.row_nll(theta, batch)[0],
    "last_hidden": lambda m, theta, batch: last_hidden(m, batch),
    "row_gradients": lambda m, theta, batch: _row_gradients(m, theta, batch),
    "exact": lambda m, theta, batch: _exact(m, theta, batch),
}


def _row_gradients(model: LoraModel, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    with row_gradients(model) as gradients:
        return gradients(theta, batch)


def _exact(model: LoraModel, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    vectors, v = torch.zeros(1, model.width, dtype=theta.dtype), torch.ones_like(theta)
    known = Slopes(v.sum(), v, ())
    found = Exact()(EmbeddingLoss(model, batch, vectors), theta, v, known).theta
    assert found is not None
    return found


@pytest.mark.parametrize("work", WORK)
def test_it_goes_on_with_smaller_parts(
    work: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_folder("llama"), dtype="float64")
    theta = model.fresh_theta(0) + 0.01
    batch = batch_of(12, 5, 9, 14, 3, 8)
    model.write(theta)
    expected = WORK[work](model, theta, batch)
    scarce(monkeypatch, 20)
    told: list[int] = []
    model.on_less = told.append
    found = WORK[work](model, theta, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert told == sorted(told, reverse=True)
    assert told[-1] == model.micro <= 20 * DOUBLE
    assert WORK[work](model, theta, batch) is not None
    assert told[-1] == model.micro, "once smaller, it stays so"


@pytest.mark.parametrize("work", WORK)
def test_a_row_that_does_not_fit_names_the_flags(
    work: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_folder("llama"))
    scarce(monkeypatch, 13)
    mend = {
        "row_nll": "",
        "last_hidden": "",
        "exact": ", or --engine first-order",
    }.get(work, ", or --gradient-checkpointing")
    with pytest.raises(OutOfMemory, match=rf"a row of 14 tokens: .* --max-tokens{mend}\."):
        WORK[work](model, model.fresh_theta(0), batch_of(12, 5, 9, 14, 3))


def test_other_errors_are_left_alone(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_folder("llama"))

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(LoraModel, "lay_out", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model.value_and_grad(model.fresh_theta(0), batch_of(5, 3))
    assert model.micro == MICRO_TOKENS


def test_what_is_smaller_is_kept_and_said(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = load(tiny_folder("llama")), []
    kept = tmp_path / "memory.json"
    settle(model, 14, kept=kept, say=said.append)
    scarce(monkeypatch, 20)
    model.value_and_grad(model.fresh_theta(0), batch_of(12, 5, 9, 14, 3))
    assert json.loads(kept.read_text()) == {model.config.model: model.micro}
    assert model.micro < 43
    assert f"going on with --micro-tokens {model.micro} " in said[-1]


def test_a_double_backward_that_does_not_fit_leaves_the_rest_alone(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it fails, nor where it would be killed."""
    model = load(tiny_folder("gpt2"))
    batches = [batch_of(12, 9), batch_of(11, 14)]
    slots = [torch.full_like(batch.slots, -1) for batch in batches]
    slots[0][0, 0], slots[1][1, 0] = 0, 1
    batches = [replace(b, slots=s) for b, s in zip(batches, slots, strict=True)]
    vectors = model.embed(torch.tensor([9, 10]))

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "loss_at", fails)
        found = diagnose(model, Recipe(), batches, vectors, thorough=False)
    assert "a double backward does not fit in memory" in found.reference
    assert model.micro == MICRO_TOKENS
    enough = int(DOUBLE * part_bytes(model)(12))
    for size, fits in ((enough, True), (enough - 1, False)):
        monkeypatch.setattr("nacd.meta.diagnosis.free_memory", lambda device, size=size: size)
        found = diagnose(model, Recipe(), batches, vectors, thorough=False)
        assert ("does not fit in memory" not in found.reference) == fits

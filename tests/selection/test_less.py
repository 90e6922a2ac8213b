"""LESS against its formula written out: float64, dense, row by row, and `torch.optim`'s AdamW."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, get_linear_schedule_with_warmup

from float64 import float64_only
from nacd.config import DataConfig, SelectionConfig
from nacd.config.recipe import Recipe
from nacd.data import Encoded, Example, Message, Splits, collate
from nacd.data.batches import Batch
from nacd.errors import UserError
from nacd.model.lora import LoraModel, ModelConfig
from nacd.model.prepare import Prepared, prepare
from nacd.selection import features
from nacd.selection.features import AdamDirection
from nacd.selection.less import (
    epoch_weights,
    gradient_features,
    less,
    similarity,
    warm_up,
    warm_up_rows,
)
from nacd.selection.method import Task, forward_flops
from nacd.selection.rounds import round_robin
from nacd.store.files import content_sha256, read_tensors
from nacd.terminal.progress import Progress
from nacd.training.student import LEARNING_SEED
from tiny import ROWS, tiny_tokenizer

RECIPE = Recipe(batch_size=4, learning_rate=3e-3)
CONFIG = SelectionConfig(warmup_share=0.25, warmup_epochs=3, projection_dim=8192)
THINGS = ("fox", "plant", "water", "food", "sun", "dog", "name", "question")
ANSWERS = ("red", "the answer is that of a lazy dog", "12 34", "sunlight and water", "brown", "?")
SUBTASKS = {"a": "sunlight and water", "b": "12 34 56"}


def example(number: int, group: str = "") -> Example:
    """A row; those of a subtask answer alike, as some of the training rows do."""
    thing, answer = THINGS[number % 8], SUBTASKS.get(group, ANSWERS[number % 6])
    asked = f"What is the {thing} number {number}" + " of all living things" * (number % 3)
    turns = (Message("user", asked), Message("assistant", answer))
    return Example(turns, f"rows.jsonl:{number}", group=group)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose LoRA, at rank 32, has 131,072 parameters."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return folder


def make(folder: Path, train: int = 48, target: int = 6, **model: Any) -> Prepared:
    rows = [example(i) for i in range(train)]
    targets = [example(100 + 5 * i, "ab"[i % 2]) for i in range(target)]
    held = [example(200 + i) for i in range(4)]
    return prepare(
        ModelConfig(model=str(folder), device="cpu", **model),
        DataConfig(data="rows", template="qa", target_rows=0),
        splits=Splits(rows, targets, held, held),
    )


@pytest.fixture(scope="module")
def wide(wide_folder: Path) -> Prepared:
    return make(wide_folder, lora_rank=32)


@pytest.fixture(scope="module")
def small(tiny_folder: Callable[[str], Path]) -> Prepared:
    return make(tiny_folder("llama"), train=20, target=3, lora_rank=2)


def task(prepared: Prepared, folder: Path, **changes: Any) -> Task:
    made = Task(prepared, RECIPE, CONFIG, 0, folder, Progress(quiet=True))
    return replace(made, **changes)


def row_gradient(model: LoraModel, theta: Tensor, row: Encoded) -> Tensor:
    """Gradient of a row's mean response NLL, from ids, by the module's own parameters."""
    model.write(theta)
    ids = torch.tensor([row.ids])
    logits = model.hf(input_ids=ids).logits[0, :-1]
    labels = torch.where(torch.tensor(row.response), ids[0], -100)[1:]
    loss = F.cross_entropy(logits, labels)
    parts = torch.autograd.grad(loss, [p for p in model.hf.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


# --- the formula ------------------------------------------------------------------------------


def dense_scores(folder: Path, prepared: Prepared, exact: Prepared) -> np.ndarray:
    """Every training row's score with every target row, (n, t): float64, nothing projected."""
    model = exact.model
    steps = math.ceil(len(warm_up_rows(task(prepared, folder))) / RECIPE.batch_size)
    total = steps * CONFIG.warmup_epochs
    warm = math.ceil(total * RECIPE.warmup)
    rates = [k / warm if k < warm else (total - k) / (total - warm) for k in range(total)]
    scores = np.zeros((len(prepared.train), len(prepared.target)))
    for epoch in range(CONFIG.warmup_epochs):
        tensors, _ = read_tensors(folder / "warmup" / f"epoch-{epoch + 1}.safetensors")
        theta, m, v = (tensors[name].double() for name in ("theta", "m", "v"))
        with float64_only():
            train = [row_gradient(model, theta, row) for row in exact.train.rows]
            target = [row_gradient(model, theta, row) for row in exact.target.rows]
        g = torch.stack(train)
        gamma = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + 1e-8)
        eta = sum(rates[epoch * steps : (epoch + 1) * steps]) / sum(rates)
        cosines = F.normalize(gamma, dim=1) @ F.normalize(torch.stack(target), dim=1).T
        scores += eta * cosines.numpy()
    return scores


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = np.stack([np.argsort(np.argsort(x)) for x in (a, b)])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


@pytest.mark.slow
def test_the_whole_method_agrees_with_the_dense_formula(
    wide: Prepared, wide_folder: Path, tmp_path: Path
) -> None:
    assert wide.model.size >= 100_000
    ranking = less(task(wide, tmp_path))
    turns = less(task(wide, tmp_path, config=replace(CONFIG, round_robin=True)))
    exact = make(wide_folder, lora_rank=32, dtype="float64")
    dense = dense_scores(tmp_path, wide, exact)
    groups = np.array([e.group for e in wide.target.examples])
    expected = np.maximum(dense[:, groups == "a"].mean(1), dense[:, groups == "b"].mean(1))

    # A projected cosine is off by at most a standard deviation of 1 / sqrt(k), and so is a weighted
    # mean of cosines; five deviations bound the largest of a few hundred.
    deviation = 1 / math.sqrt(CONFIG.projection_dim)
    checkpoints = warm_up(task(wide, tmp_path))
    sets = gradient_features(task(wide, tmp_path), checkpoints)
    errors = np.concatenate([*similarity([c.weight for c in checkpoints], sets)]) - dense
    assert np.sqrt(np.mean(errors**2)) < 1.2 * deviation
    assert np.abs(errors).max() < 5 * deviation
    assert ranking.scores is not None
    assert np.abs(ranking.scores - expected).max() < 5 * deviation
    assert spearman(ranking.scores, expected) > 0.98

    order = [*ranking.order]
    assert sorted(order) == [*range(48)]
    assert list(ranking.scores[order]) == sorted(ranking.scores, reverse=True)
    # By turns: among the first rows, those that dense turns choose.
    first = {*itertools.islice(turns.order, 12)}
    assert len(first & {*itertools.islice(round_robin(dense), 12)}) >= 10


def test_the_projection_is_all_that_is_lost(
    small: Prepared, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """With as many buckets as parameters, the rest (float32, float16 shards) is off by 1e-4."""
    assert small.model.size < CONFIG.projection_dim
    ranking = less(task(small, tmp_path))
    exact = make(tiny_folder("llama"), train=20, target=3, lora_rank=2, dtype="float64")
    dense = dense_scores(tmp_path, small, exact)
    expected = np.maximum(dense[:, [0, 2]].mean(1), dense[:, 1])
    assert ranking.scores is not None
    np.testing.assert_allclose(ranking.scores, expected, atol=1e-4)


def test_gamma() -> None:
    generator = torch.Generator().manual_seed(0)
    m, g = torch.randn(2, 500, dtype=torch.float64, generator=generator) * 1e-3
    v = torch.rand(500, dtype=torch.float64, generator=generator) * 1e-6
    v[:50] = m[:50] = 0
    g[:10] = 0
    expected = [
        (0.8 * m[i] + 0.2 * g[i]) / math.sqrt(0.99 * v[i] + 0.01 * g[i] ** 2 + 1e-8)
        for i in range(500)
    ]
    found = AdamDirection(m, v, 0.8, 0.99)(g.clone())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    twice = AdamDirection(m, v, 0.8, 0.99)
    twice(torch.ones_like(g))
    assert torch.equal(twice(g.clone()), found), "nothing is left of the row before"


def test_gamma_is_bounded_as_the_projection_assumes() -> None:
    generator = torch.Generator().manual_seed(0)
    m = v = torch.zeros(1000)
    for scale in (1e-3, 1.0, 1e2, 1e4):
        g = torch.randn(1000, generator=generator) * scale
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        gamma = AdamDirection(m, v, 0.9, 0.999)(g.sign() * scale * 10)
        assert float(gamma.abs().max()) < 7.3


# --- the warm-up ------------------------------------------------------------------------------


def test_the_warm_up_is_torch_adamw_and_its_weights_the_mean_rates(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    prepared = make(tiny_folder("llama"), train=40, target=2, lora_rank=2, dtype="float64")
    model = prepared.model
    asked = task(prepared, tmp_path, recipe=replace(RECIPE, optimizer="adamw", epochs=7, steps=99))
    with float64_only():
        checkpoints = warm_up(asked)
    rows = [prepared.train.rows[i] for i in warm_up_rows(asked)]
    assert len(rows) == 10
    model.write(model.fresh_theta(LEARNING_SEED))
    parameters = [p for p in model.hf.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 9)
    rates: list[float] = []
    for epoch, checkpoint in enumerate(checkpoints):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0, epoch))))
        order = generator.permutation(10)
        for start in (0, 4, 8):
            batch = collate([rows[i] for i in order[start : start + 4]], 0)
            with float64_only():
                logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention).logits
            labels = batch.ids.masked_fill(~batch.response, -100)
            F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        theta, m, v = checkpoint.load(model.device)
        for found, name in ((theta, None), (m, "exp_avg"), (v, "exp_avg_sq")):
            parts = [p.detach() if name is None else optimizer.state[p][name] for p in parameters]
            expected = torch.cat([part.flatten() for part in parts])
            assert float((found - expected).norm()) < 1e-6 * float(expected.norm())
    means = np.reshape(rates, (3, 3)).mean(1)
    assert [c.weight for c in checkpoints] == pytest.approx(list(means / means.sum()), rel=1e-12)


def test_epoch_weights_by_hand() -> None:
    constant = Recipe(schedule="constant", warmup=0.0)
    assert epoch_weights(constant, 4, 5) == pytest.approx([0.25] * 4)
    falling = Recipe(schedule="linear", warmup=0.0)  # rates 1, 3/4, 2/4, 1/4
    assert epoch_weights(falling, 2, 2) == pytest.approx([0.7, 0.3])
    assert epoch_weights(Recipe(), 2, 1) == [0.0, 1.0]  # the first step is at rate 0
    with pytest.raises(UserError, match=r"--warmup-epochs 1: .* rate 0; give more epochs"):
        epoch_weights(Recipe(), 1, 1)


def test_the_draw_is_seeded(small: Prepared, tmp_path: Path) -> None:
    draws = [warm_up_rows(task(small, tmp_path, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({*draws[0]}) == 5
    few = replace(CONFIG, warmup_share=0.001)
    assert len(warm_up_rows(task(small, tmp_path, config=few))) == 1


def test_a_checkpoint_of_weight_0_costs_nothing(small: Prepared, tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=8)  # one step an epoch, the first at rate 0
    ranking = less(task(small, tmp_path, recipe=recipe))
    assert {f.name for f in (tmp_path / "features").iterdir()} == {
        f"epoch-{i}-{part}" for i in (2, 3) for part in ("train", "target")
    }
    tokens = sum(len(row) for row in (*small.train.rows, *small.target.rows))
    warm = sum(len(small.train.rows[i]) for i in warm_up_rows(task(small, tmp_path)))
    assert ranking.flops == 2 * forward_flops(small.model, 2 * tokens + 3 * warm)


# --- the shards -------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a kill: nothing may catch it."""


def contents(folder: Path) -> dict[str, bytes]:
    files = [f for f in folder.rglob("*") if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "after", [3, pytest.param(6, marks=SLOW), 8, pytest.param(9, marks=SLOW), 18, 23]
)
def test_killed_and_resumed_gives_the_same_bits(
    after: int, small: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 6 passes in the warm-up, then one of 3 target rows and five of 20 training rows (2, 2, 1 for
    # the shards) at each of three checkpoints: killed in the warm-up, in target rows, within and
    # between shards, before another checkpoint, in the last shard.
    monkeypatch.setattr(features, "SHARD_ROWS", 8)
    whole = less(task(small, tmp_path / "whole"))
    real, calls = LoraModel.token_nll, 0

    def dies(self: LoraModel, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == after:
            raise Killed
        calls += 1
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "token_nll", dies)
        with pytest.raises(Killed):
            less(task(small, tmp_path / "half"))
    (tmp_path / "half" / "warmup" / ".epoch-1.safetensors.partial-1").write_bytes(b"torn")
    before = contents(tmp_path / "half")
    again = less(task(small, tmp_path / "half"))
    assert whole.scores is not None
    assert again.scores is not None
    np.testing.assert_array_equal(whole.scores, again.scores)
    assert list(whole.order) == list(again.order)
    assert contents(tmp_path / "whole") == contents(tmp_path / "half")
    kept = {k: v for k, v in before.items() if "partial" not in k}
    assert kept.items() <= contents(tmp_path / "half").items()


def test_what_is_there_is_not_computed_again(
    small: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = less(task(small, tmp_path))
    monkeypatch.delattr(LoraModel, "token_nll")
    turns = less(task(small, tmp_path, config=replace(CONFIG, round_robin=True)))
    assert sorted(turns.order) == [*range(20)]
    again = less(task(small, tmp_path))
    assert first.scores is not None
    np.testing.assert_array_equal(first.scores, again.scores)  # pyright: ignore[reportArgumentType]


def test_the_manifest_says_what_the_features_are(small: Prepared, tmp_path: Path) -> None:
    less(task(small, tmp_path))
    folder = tmp_path / "features" / "epoch-3-train"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["method"] == "less"
    assert manifest["projection"]["kind"] == "blocked-countsketch"
    assert (manifest["projection"]["dim"], manifest["projection"]["seed"]) == (8192, 0)
    assert manifest["model"]["model"] == small.model.config.model
    assert manifest["rows"] == [e.digest for e in small.train.examples]
    tensors, _ = read_tensors(tmp_path / "warmup" / "epoch-3.safetensors")
    assert manifest["checkpoint"] == content_sha256(tensors)
    shard, _ = read_tensors(folder / "rows-000000.safetensors")
    assert shard["features"].shape == (20, 8192)
    norms = shard["features"].float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": replace(CONFIG, projection_dim=512)}, r"projection\.dim: 8192 there, 512 now"),
        ({"recipe": replace(RECIPE, learning_rate=1e-3)}, r"recipe\.learning_rate: 0\.003 there"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"config": replace(CONFIG, warmup_share=0.5)}, "rows: 5 of hash .* there, 10 of hash"),
    ],
)
def test_other_settings_are_refused(
    changes: dict[str, Any], named: str, small: Prepared, tmp_path: Path
) -> None:
    less(task(small, tmp_path))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"manifest\.json: made with other .*{named}.*delete"):
        less(task(small, tmp_path, **changes))
    assert contents(tmp_path) == before


def test_a_shard_of_another_checkpoint_is_refused(small: Prepared, tmp_path: Path) -> None:
    less(task(small, tmp_path))
    shard = tmp_path / "features" / "epoch-3-train" / "rows-000000.safetensors"
    shutil.copy(tmp_path / "features" / "epoch-2-train" / shard.name, shard)
    with pytest.raises(UserError, match=r"epoch-3-train/rows-000000\.safetensors: made with oth"):
        less(task(small, tmp_path))
    shard.unlink()
    less(task(small, tmp_path))


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied"])
@pytest.mark.parametrize("name", ["features/epoch-2-target/rows-000000", "warmup/epoch-1"])
def test_a_damaged_file_is_named(name: str, harm: str, small: Prepared, tmp_path: Path) -> None:
    whole = less(task(small, tmp_path))
    file = tmp_path / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes({"cut": data[:-5], "flipped": data, "emptied": b""}[harm])
    with pytest.raises(UserError, match=rf"{file.name}: damaged.*delete it, and run"):
        less(task(small, tmp_path))
    file.unlink()
    again = less(task(small, tmp_path))
    np.testing.assert_array_equal(whole.scores, again.scores)  # pyright: ignore[reportArgumentType]


# --- what is refused --------------------------------------------------------------------------


def test_sgd_is_refused(small: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--optimizer sgd: .* give --optimizer adamw"):
        less(task(small, tmp_path, recipe=replace(RECIPE, optimizer="sgd")))


def test_a_warm_up_that_diverges(small: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged at --learning-rate 1e\+38"):
        less(task(small, tmp_path, recipe=replace(RECIPE, learning_rate=1e38)))


def test_a_gradient_that_is_not_finite_names_its_row(
    small: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up(task(small, tmp_path))
    real, broken = LoraModel.row_losses, list(small.train.rows[4].ids)

    def breaks(self: LoraModel, batch: Batch) -> Tensor:
        same = [ids[: len(broken)] == broken for ids in batch.ids.tolist()]
        return torch.where(torch.tensor(same), math.nan, 1.0) * real(self, batch)

    monkeypatch.setattr(LoraModel, "row_losses", breaks)
    with pytest.raises(UserError, match=r"rows\.jsonl:4: the gradient of this row is not finite"):
        less(task(small, tmp_path))

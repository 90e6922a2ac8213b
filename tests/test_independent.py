"""Oracles from outside for what other tests take as given: table rows, segments, the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import get_linear_schedule_with_warmup

from float64 import float64_only
from nacd.comparison.rowset import of_training
from nacd.comparison.rowsets import beside, rowsets
from nacd.comparison.table import summarise
from nacd.config import TABLE_ROWS, DistillConfig, OuterLoopConfig
from nacd.config.budget import parse_budget
from nacd.config.compare import one_cell
from nacd.config.recipe import Recipe
from nacd.data import Encoded, collate
from nacd.data.rows import Rows, learnable_rows
from nacd.distillation.candidates import expected_tokens
from nacd.distillation.segments import segment_maker
from nacd.meta import FirstOrder
from nacd.meta.engines import Slopes
from nacd.meta.losses import EmbeddingLoss
from nacd.model.lora import ModelConfig, load_model
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.inner import Start
from nacd.training.student import train_student


def test_table_difference() -> None:
    def row(method: str, nll: tuple[float, ...]) -> list[dict[str, Any]]:
        about = {"target": "m", "budget": "4", "method": method, "learning_rate": 1e-3}
        sizes = {"rows": 4, "tokens": 9, "steps": 2, "training_seconds": 1.0}
        return [about | sizes | {"seed": i, "report_nll": x} for i, x in enumerate(nll)]

    cells = [*row("seeds", (2.5, 2.4, 2.9)), *row("text", (2.0, 2.1, 2.3))]
    held = summarise(cells)[1]["minus_seeds"]
    d = np.array([-0.5, -0.3, -0.6])
    assert held["mean"] == pytest.approx(d.mean())
    low, high = stats.t.interval(0.95, 2, d.mean(), stats.sem(d))
    assert held["over_trainings"] == pytest.approx((high - low) / 2)


def test_rows_train_on_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(i: int) -> Rows:
        return Rows.of([Encoded((i, 2, 3), (False, True, True), (0, 1))] * 4, 0)

    seeds, text, last, full = map(of, (11, 12, 13, 14))
    learnable = learnable_rows(seeds.rows, "prefix:1", 0)
    soft = torch.ones(4, 2)
    r = Recipe(batch_size=2, shuffle=False)

    def examples(rows: Rows) -> list[Any]:
        return [SimpleNamespace(encoded=row, prompt="") for row in rows.rows]

    def texts(rows: Rows) -> list[Any]:
        return [SimpleNamespace(encoded=e.encoded, example=e) for e in examples(rows)]

    for module in ("distilled", "rowsets"):
        monkeypatch.setattr(
            f"nacd.comparison.{module}.encoded",
            lambda rows, _: Rows.of([row.encoded for row in rows], 0),
        )
    monkeypatch.setattr("nacd.comparison.distilled.surviving_boundaries", lambda *_: 1.0)
    monkeypatch.setattr("nacd.comparison.distilled.share_changed", lambda *_: 0.6)
    monkeypatch.setattr("nacd.comparison.distilled._learning_flops", lambda _: 0.0)
    monkeypatch.setattr(
        "nacd.comparison.distilled.choosable", lambda *_: torch.ones(20, dtype=torch.bool)
    )
    (tmp_path / "seeds.json").write_text('{"method": "random", "flops": 0.0}')
    outcome: Any = SimpleNamespace(
        recipe=r,
        text=texts(text),
        changed=0.5,
        starts=SimpleNamespace(examples=examples(seeds), pseudo=learnable),
        folder=SimpleNamespace(path=tmp_path),
        clock=SimpleNamespace(stages=[]),
        config=DistillConfig(outer=OuterLoopConfig(learn="prefix:1")),
        distiller=SimpleNamespace(text=lambda _: texts(last)),
        learned=SimpleNamespace(
            last_ids=None,
            soft=soft,
            soft_step=0,
            soft_learning_rate=8e-3,
            learning_rate=7e-3,
            last_learning_rate=9e-3,
        ),
    )
    model = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0), table=seeds.rows, device="cpu"
    )
    part = SimpleNamespace(examples=examples(full), rows=full.rows)
    source: Any = SimpleNamespace(model=model, train=part)
    monkeypatch.setattr("nacd.comparison.rowsets.draw", lambda *_: [3, 1])
    config = replace(DistillConfig(), full_epochs=3.0, budget="2")
    one = one_cell(config, r, beside(outcome, TABLE_ROWS))
    quiet = Progress(quiet=True)
    sets = rowsets(one, parse_budget("2"), source, r, RunFolder(tmp_path), quiet, lambda: [outcome])
    found = {s.method: s.training(source, 0) for s in sets}
    labels = {s.method: s.label for s in sets}
    expected = {
        "random": Rows.of([full.rows[3], full.rows[1]], 0),
        "seeds": seeds,
        "seeds-shuffled": seeds,
        "soft": learnable,
        "text": text,
        "text-shuffled": text,
        "text-last": last,
        "full": full,
        "full-equal-steps": full,
    }
    for name, data in expected.items():
        given = found[name].data
        assert given is not None
        assert given.rows == data.rows, name
        rates = {"soft": 8e-3, "text": 7e-3, "text-shuffled": 7e-3, "text-last": 9e-3}
        assert of_training(r, found[name]).learning_rate == rates.get(name, 5e-4), name
        assert (found[name].vectors is soft) == (name == "soft")
        assert given.slots == (learnable.slots if name == "soft" else data.slots), name
    prompts = found["random-prompts"].data
    assert prompts is not None
    assert [len(row) for row in prompts.rows] == [4] * 4, "random tokens where tokens are learned"
    assert [row.ids[1:] for row in prompts.rows] == [(11, 2, 3)] * 4
    assert labels["random-prompts"] == "random prefix"
    assert labels["soft"] == "NACD soft, at the start", "nothing was learned"


@pytest.mark.parametrize("kind", ["recorded", "zeros"])
def test_trajectory_segment(kind: str, tiny_folder: Callable[[str], Path]) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("gpt2")), lora_rank=1, device="cpu"))
    prepared: Any = SimpleNamespace(model=model, target=SimpleNamespace(rows=()))
    recipe = Recipe(batch_size=2, epochs=2)

    def snapshot(step: int, _: object) -> Start:
        theta = torch.full((model.size,), float(step))
        return Start(theta, (theta + 1, theta + 2), step)

    expert: Any = SimpleNamespace(steps=[0, 4, 8, 12], state=kind, snapshot=snapshot)
    make = segment_maker(
        prepared,
        recipe,
        OuterLoopConfig(objective="trajectory", expert_start=4, expert_ahead=4),
        10,
        [expert],
    )
    seen: set[float] = set()
    for n in range(12):
        s = make(n, 0)
        first = float(s.start.theta[0])
        seen.add(first)
        goal = torch.full((model.size,), first + 4)
        assert s.objective(goal)[0] == 0.0
        assert s.objective(s.start.theta)[0] == pytest.approx(1.0)
        slope = s.objective(s.start.theta)[1]
        assert s.objective(s.start.theta - 0.1 * slope / slope.norm())[0] < 1.0
        own = first > 0 and kind == "recorded"
        assert [float(x[0]) for x in s.start.state] == ([first + 1, first + 2] if own else [0, 0])
        assert s.start.count == (first if own else 0)
        rates = [s.loop.recipe.rate(k, s.loop.total) for k in range(s.loop.total)]
        assert (len(set(rates)) == 1) == (first > 0)
    assert seen == {0.0, 4.0}


def test_student_is_torch(tiny_folder: Callable[[str], Path]) -> None:
    model = load_model(
        ModelConfig(model=str(tiny_folder("llama")), lora_rank=2, device="cpu", dtype="float64")
    )
    g = torch.Generator().manual_seed(1)
    rs = [
        Encoded(
            tuple(torch.randint(5, 290, (8,), generator=g).tolist()),
            (False,) * 5 + (True,) * 3,
            (1, 3),
        )
        for _ in range(10)
    ]
    r = Recipe(batch_size=4, epochs=3, learning_rate=5e-3, weight_decay=0.1, clip=0.5)
    with float64_only():
        found = train_student(model, r, Rows.of(rs, 0), 7)
        model.write(model.fresh_theta(7))
        ps = [p for p in model.hf.parameters() if p.requires_grad]
        opt = torch.optim.AdamW(ps, lr=5e-3, weight_decay=0.1)
        sched = get_linear_schedule_with_warmup(opt, 1, 9)
        for epoch in range(3):
            order = np.random.default_rng((7, epoch)).permutation(10)
            for at in (0, 4, 8):
                b = collate([rs[i] for i in order[at : at + 4]], 0)
                model.hf(
                    input_ids=b.ids,
                    attention_mask=b.attention,
                    labels=b.ids.masked_fill(~b.response, -100),
                ).loss.backward()
                torch.nn.utils.clip_grad_norm_(ps, 0.5)
                opt.step()
                sched.step()
                opt.zero_grad()
    torch.testing.assert_close(
        found, torch.cat([p.detach().flatten() for p in ps]), rtol=1e-5, atol=1e-9
    )


def test_eps_is_a_share_of_theta(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(
        ModelConfig(model=str(tiny_folder("llama")), lora_rank=2, device="cpu", dtype="float64")
    )
    pseudo = learnable_rows(
        [Encoded((5, 6, 7, 8), (False, False, False, True), (1, 3))], "prompt", 0
    )
    theta = model.fresh_theta(1)
    v = torch.linspace(-3, 3, model.size, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    real = type(model).value_and_grad
    monkeypatch.setattr(
        type(model),
        "value_and_grad",
        lambda self, t, *a, **k: seen.append(t) or real(self, t, *a, **k),
    )
    loss = EmbeddingLoss(model, pseudo.batch([0]), model.embed(pseudo.ids))
    FirstOrder(2e-3)(loss, theta, v, Slopes(v.sum(), theta, ()))
    assert [float((t - theta).norm() / theta.norm()) for t in seen] == pytest.approx([2e-3, 2e-3])


def test_expected_tokens(tiny_folder: Callable[[str], Path]) -> None:
    model = load_model(ModelConfig(model=str(tiny_folder("llama")), lora_rank=2, device="cpu"))
    pseudo = learnable_rows(
        [Encoded((5, 60, 71, 8, 9), (False,) * 4 + (True,), (1, 4))], "prompt", 0
    )
    allowed = torch.ones(308, dtype=torch.bool)
    allowed[::2] = False
    found = expected_tokens(model, pseudo, 3, allowed)
    for q, position in enumerate((1, 2, 3)):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([[5, 60, 71, 8, 9][:position]])).logits[0, -1]
        order = [t for t in logits.argsort(descending=True).tolist() if t % 2]
        assert found[q].tolist() == order[:3]

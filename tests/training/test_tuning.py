"""The tuner on surfaces whose lowest point is known, and on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from nacd.config import DataConfig
from nacd.config.recipe import Recipe
from nacd.data import Example, Message, Splits
from nacd.data.rows import Rows
from nacd.errors import UserError
from nacd.model.lora import ModelConfig
from nacd.model.prepare import Prepared, prepare
from nacd.store.run import RunFolder
from nacd.training import tuning
from nacd.training.evaluation import RowNll
from nacd.training.halving import Found, Score, Setting, Tried, search
from nacd.training.student import TUNING_SEED, train_student
from nacd.training.tuning import tune_recipe

RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
EPOCHS = (1.0, 2.0, 4.0, 8.0)
START = Setting(4.0, 5e-4)
ROWS = 200


class Surface:
    """A valley along rate x epochs = constant, as measured trainings have it, with noise.

    Rows share a level of their own (paired), trainings a shift each; `asked` is what was trained.
    """

    def __init__(
        self,
        best: Setting,
        noise: float = 0.01,
        rows: float = 0.05,
        across: float = 0.15,
        along: float = 0.04,
        seed: int = 0,
    ):
        self.best, self.noise, self.rows, self.across, self.along = best, noise, rows, across, along
        self.generator = np.random.default_rng(seed)
        self.level = self.generator.normal(2.0, 0.8, ROWS)
        self.asked: list[tuple[Setting, int]] = []

    def truth(self, at: Setting) -> float:
        travel = math.log2(at.learning_rate * at.epochs)
        travel -= math.log2(self.best.learning_rate * self.best.epochs)
        length = math.log2(at.epochs / self.best.epochs)
        return self.across * travel**2 + self.along * length**2

    def __call__(self, at: Setting, number: int) -> RowNll | None:
        self.asked.append((at, number))
        own = np.random.default_rng([int(1e7 * at.learning_rate), int(8 * at.epochs), number])
        shift = own.normal(0, self.noise)
        rows = self.level + self.truth(at) + shift + own.normal(0, self.rows, ROWS)
        return RowNll(rows, np.ones(ROWS, dtype=np.int64))


def find(score: Score, start: Setting = START, **options: object) -> Found:
    given = {"rates": RATES, "epochs": EPOCHS} | options
    return search(score, start=start, **given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("rate", RATES)
def test_the_lowest_point_is_found_through_noise(rate: float, epochs: float) -> None:
    surface = Surface(Setting(epochs, rate))
    found = find(surface)
    # the shorter of two that are alike may be taken, never one that is worse than the noise
    assert surface.truth(found.setting) <= 2 * surface.noise, found.setting
    assert found.complete
    assert len({setting for setting, _ in surface.asked}) < 20


def test_it_asks_for_whole_trainings_in_rungs() -> None:
    surface = Surface(Setting(2.0, 1e-3), along=0.0, across=0.01, noise=0.0, rows=0.5)
    find(surface)
    counts = {
        setting: sum(1 for other, _ in surface.asked if other == setting)
        for setting, _ in surface.asked
    }
    assert set(counts.values()) == {1, 2, 4}
    assert sum(count > 1 for count in counts.values()) <= math.ceil(len(counts) / 2)
    for setting, count in counts.items():
        assert [n for other, n in surface.asked if other == setting] == [*range(count)]


def test_the_cheaper_of_two_that_are_alike() -> None:
    flat = Surface(START, along=0.0, noise=0.0, rows=0.0)
    assert find(flat).setting == Setting(2.0, 1e-3)
    surface = Surface(START, along=0.15, noise=0.0)
    assert find(surface).setting == START


def test_a_cheaper_choice_is_said() -> None:
    def score(at: Setting, _: int) -> RowNll:
        """Two epochs are 0.01 worse than four, of rows whose difference spreads by 1."""
        rows = np.full(ROWS, 2.0)
        if at == Setting(2.0, 5e-4):
            rows += 0.01 + np.where(np.arange(ROWS) % 2, 1, -1)
        elif at != START:
            rows += 1.0
        return RowNll(rows, np.ones(ROWS, dtype=np.int64))

    found = find(score)
    assert found.setting == Setting(2.0, 5e-4)
    assert any("takes more epochs; the shorter training was chosen" in n for n in found.notes)


@pytest.mark.parametrize(
    ("best", "further"),
    [
        (Setting(32.0, 5e-4), "epochs given (1 to 8), so 16, 32"),
        (Setting(1.0, 1.6e-2), "learning rates given (0.000125 to 0.002), so 0.004, 0.008, 0.016"),
        (Setting(4.0, 3.1e-5), "6.25e-05"),
    ],
)
def test_the_grid_grows_where_the_best_lies_at_its_border(best: Setting, further: str) -> None:
    surface = Surface(best, along=0.1, noise=0.0)
    found = find(surface)
    assert surface.truth(found.setting) < 0.01
    assert any(further in note for note in found.notes), found.notes
    assert all(setting.epochs >= 1 for setting, _ in surface.asked), "no row is left out"
    inside = find(Surface(START))
    assert not [note for note in inside.notes if "border" in note]


def test_one_value_alone_is_fixed() -> None:
    surface = Surface(Setting(1.0, 2e-3))
    found = find(surface, rates=(5e-4,))
    assert {setting.learning_rate for setting, _ in surface.asked} == {5e-4}
    assert found.setting.epochs == 4.0


def test_it_is_deterministic() -> None:
    runs = [find(Surface(Setting(2.0, 1e-3), noise=0.05)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_what_diverges_has_no_score() -> None:
    surface = Surface(Setting(4.0, 2.5e-4))

    def score(at: Setting, number: int) -> RowNll | None:
        found = surface(at, number)
        assert found is not None
        if at.learning_rate > 3e-4:
            return RowNll(np.full(ROWS, math.nan), found.tokens)
        return found

    found = find(score)
    assert found.setting.learning_rate <= 2.5e-4
    assert {t.nll for t in found.tried if t.learning_rate > 3e-4} == {None}
    assert any("diverged at" in note for note in found.notes)

    def never(_: Setting, __: int) -> RowNll:
        return RowNll(np.full(ROWS, math.inf), np.ones(ROWS, dtype=np.int64))

    with pytest.raises(UserError, match=r"--learning-rate: training diverges at each of 7.8.e-06"):
        find(never)


def test_time_that_is_up_ends_the_search_with_what_there_is() -> None:
    surface = Surface(Setting(1.0, 2e-3), noise=0.0)
    find(surface)
    for most in range(1, len(surface.asked)):
        surface.asked.clear()
        found = find(lambda at, n, most=most: surface(at, n) if len(surface.asked) < most else None)
        assert len(surface.asked) <= most
        assert not found.complete
        assert any("Time was up" in note for note in found.notes)
        tried = {Setting(t.epochs, t.learning_rate): t.nll or math.inf for t in found.tried}
        assert tried[found.setting] <= tried[START]


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path]) -> Prepared:
    def example(number: int) -> Example:
        words = Message("user", f"what is the colour of the {number}")
        return Example((words, Message("assistant", "the fox")), f"rows:{number}")

    train, held = [example(i) for i in range(30)], [example(100 + i) for i in range(6)]
    model = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    return prepare(
        model,
        DataConfig(data="rows", template="qa"),
        splits=Splits(train, held, held, held),
    )


def test_on_a_model_it_scores_whole_shuffled_trainings(prepared: Prepared, tmp_path: Path) -> None:
    base = Recipe(batch_size=2, epochs=2, learning_rate=2e-3, shuffle=False)
    sets = [prepared.train.rows[:6], prepared.train.rows[6:12]]
    tuned = tune_recipe(
        prepared.model,
        sets,
        prepared.development.rows,
        base,
        RunFolder(tmp_path),
        rates=(2e-3, 8e-3),
        epochs=(1.0,),
        trainings=2,
    )
    assert tuned.recipe.shuffle
    chosen = Tried(tuned.recipe.learning_rate, tuned.recipe.epochs, 0.0, 0)
    record = json.loads((tmp_path / "tuning.json").read_text())
    assert record["epochs"] == chosen.epochs
    assert any("Only 6 validation rows" in note for note in tuned.notes)
    # one file a training, each that of the trainer itself
    files = sorted((tmp_path / "tuning").glob("*.json"))
    assert len(files) == sum(tried.trainings for tried in tuned.tried)
    for file in files:
        rate, epochs, number = file.stem.rsplit("-", 2)
        recipe = Recipe(batch_size=2, epochs=float(epochs), learning_rate=float(rate))
        pad = prepared.model.tokenizer.pad_token_id
        data = Rows.of(sets[int(number) % 2], pad)
        theta = train_student(prepared.model, recipe, data, TUNING_SEED + int(number))
        found = tuning.response_nll(prepared.model, theta, prepared.development.rows)
        assert json.loads(file.read_text())["nll"] == pytest.approx(found.nll.tolist())
    assert len(tuned.table()) == len(tuned.tried)
    assert f"{chosen.epochs:g} epoch" in tuned.describe()


def test_a_stopped_search_goes_on_and_a_finished_one_is_read(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Recipe(batch_size=2, epochs=2, learning_rate=2e-3)
    trained: list[Recipe] = []

    def train(_: object, recipe: Recipe, __: object, seed: int, **___: object) -> Tensor:
        trained.append(recipe)
        if len(trained) == died_at:
            raise KeyboardInterrupt
        return recipe.learning_rate * prepared.model.fresh_theta(seed + int(recipe.epochs))

    died_at = 0
    monkeypatch.setattr(tuning, "train_student", train)

    def tune(folder: Path) -> tuning.TunedRecipe:
        rows, judges = prepared.train.rows[:6], prepared.development.rows
        return tune_recipe(prepared.model, [rows], judges, base, RunFolder(folder), trainings=2)

    whole = tune(tmp_path / "whole")
    times = len(trained)
    assert times == sum(tried.trainings for tried in whole.tried) > 4
    trained.clear()
    died_at = 4
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "killed")
    again = tune(tmp_path / "killed")
    assert (again.recipe, again.tried) == (whole.recipe, whole.tried)
    assert len(trained) == 1 + times
    assert tune(tmp_path / "killed") == again
    assert len(trained) == 1 + times


def test_minutes_bound_it(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def train(*args: object, **_: object) -> object:
        now[0] += 60.0
        return prepared.model.zero_theta()

    monkeypatch.setattr(tuning, "train_student", train)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now[0])
    base = Recipe(batch_size=2, epochs=2, learning_rate=2e-3)
    for minutes, fit in ((0.5, 1), (1.0, 1), (3.2, 3)):
        now[0] = 0.0
        found = tune_recipe(
            prepared.model,
            [prepared.train.rows[:6]],
            prepared.development.rows,
            base,
            RunFolder(tmp_path / f"{minutes}"),
            epochs=(2.0,),
            minutes=minutes,
        )
        assert sum(tried.trainings for tried in found.tried) == fit
        assert not found.complete
    # more time: the same folder goes on from there
    again = tune_recipe(
        prepared.model,
        [prepared.train.rows[:6]],
        prepared.development.rows,
        base,
        RunFolder(tmp_path / "3.2"),
        epochs=(2.0,),
    )
    assert again.complete
    assert again.seconds == 60.0 * sum(tried.trainings for tried in again.tried)
    assert now[0] == again.seconds


def test_a_step_that_moves_nothing_is_not_tried(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm-up of one step gives a training of one step a rate of 0."""
    theta = prepared.model.zero_theta()
    monkeypatch.setattr(tuning, "train_student", lambda *_, **__: theta)
    options = {
        "model": prepared.model,
        "sets": [prepared.train.rows[:4]],
        "validation": prepared.development.rows,
        "folder": RunFolder(tmp_path),
        "trainings": 1,
    }
    base = Recipe(batch_size=4, epochs=4, learning_rate=2e-3)
    found = tune_recipe(recipe=base, **options)  # pyright: ignore[reportArgumentType]
    assert min(tried.epochs for tried in found.tried) == 2.0
    with pytest.raises(UserError, match=r"4 rows make 1 optimiser step"):
        tune_recipe(recipe=base, epochs=(1.0,), name="other", **options)  # pyright: ignore[reportArgumentType]

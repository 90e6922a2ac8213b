"""Every verdict from made-up measurements, and what it takes to lose one."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from nacd.checking.verdict import (
    Measured,
    Measurements,
    difference,
    half_of,
    judge,
)
from nacd.statistics.intervals import difference_interval, question_bootstrap, t_interval
from nacd.statistics.verdict import word

ROWS = 200
TOKENS = np.ones(ROWS, dtype=np.int64)
LEVEL = np.random.default_rng(0).normal(0.0, 1.0, ROWS)
LEVEL -= LEVEL.mean()
SPREAD = (0.0, 1.0, -1.0, 0.5, -0.5, 0.8, -0.8, 0.3, -0.3, 0.0)
BUDGET, TOTAL = 105, 2108


def trained(
    mean: float, trainings: int = 5, spread: float = 0.01, noise: float = 0.05, rows: int = BUDGET
) -> Measured:
    """A set whose trainings and test rows spread by so much around a mean."""
    values = spread * np.asarray(SPREAD[:trainings])
    own = np.random.default_rng(round(1000 * mean) + rows).normal(0.0, noise, ROWS)
    by_row = LEVEL + mean + own - own.mean()
    return Measured(rows, tuple(mean + values - values.mean()), by_row)


def untrained(mean: float = 4.5) -> Measured:
    return Measured(0, (mean,), LEVEL + mean, trained=False)


def measurements(**changes: object) -> Measurements:
    """Training gains 2.5; 105 rows reach 2.4, all 2.0."""
    given = Measurements(
        BUDGET,
        TOTAL,
        TOKENS,
        untrained(),
        {26: trained(2.8, 3, rows=26), BUDGET: trained(2.4), TOTAL: trained(2.0, 1, rows=TOTAL)},
        {},
    )
    return replace(given, **changes)  # pyright: ignore[reportArgumentType]


def sizes(**means: float) -> dict[int, Measured]:
    """Random sets by name: `small`, `budget`, `large`, `all`."""
    rows = {"small": 26, "budget": BUDGET, "large": 420, "all": TOTAL}
    return {rows[name]: trained(mean, rows=rows[name]) for name, mean in means.items()}


def said(found: str) -> str:
    return found.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


def test_keep_them_all() -> None:
    found = judge(measurements())
    assert (found.kind, found.rows) == ("all", TOTAL)
    assert re.fullmatch(
        r"Keep them all: all 2,108 rows end 0\.400 \(0\.3\d\d to 0\.4\d\d\) nats per token lower "
        r"than 105 random ones\.",
        said(found.sentence),
    )
    assert "If it must be 105, nothing is known to beat random rows" in found.detail
    assert found.margin == pytest.approx(0.05 * 2.5)


def test_keep_them_all_and_what_is_best_at_the_budget() -> None:
    found = judge(measurements(choices={"rds+": trained(2.3), "best-of": trained(2.39)}))
    assert (found.kind, found.rows, found.method) == ("all", TOTAL, "rds+")
    assert "If it must be 105, choose by RDS+: 0.100 (0.0" in said(found.detail)
    assert found.lacking is None
    found = judge(measurements(choices={"rds+": trained(2.395)}))
    assert (found.kind, found.method) == ("all", "random")
    assert "random rows will do: RDS+ does not gain 0.125 nats" in said(found.detail)
    found = judge(measurements(choices={"rds+": trained(2.35, 3, 0.3)}))
    assert "nothing is known to beat random rows: RDS+ 0.050 (-" in said(found.detail)
    assert found.lacking is not None


def test_fewer_rows_train_like_all() -> None:
    found = judge(measurements(random=sizes(small=2.8, budget=2.05, all=2.0)))
    assert (found.kind, found.rows) == ("fewer", BUDGET)
    assert said(found.sentence).startswith(
        "105 rows train like all 2,108: keep these 105. They lose 0.050 (0.03"
    )
    assert "less than 0.125, 5 % of what training gains, counts as alike" in said(found.sentence)
    # the smallest that is alike, whoever else is
    found = judge(measurements(random=sizes(small=2.06, budget=2.05, all=2.0)))
    assert (found.kind, found.rows, found.method) == ("fewer", 26, "random")
    # more rows than asked for, and fewer than all
    found = judge(measurements(random=sizes(small=2.8, budget=2.4, large=2.05, all=2.0)))
    assert (found.kind, found.rows) == ("fewer", 420)
    assert "keep 420." in found.sentence
    assert "If it must be 105, nothing is known" in found.detail
    # chosen rows where they are better than random ones
    choices = {"rds+": trained(1.95)}
    random = sizes(budget=2.05, all=2.0)
    found = judge(measurements(random=random, choices=choices))
    assert (found.kind, found.rows, found.method) == ("fewer", BUDGET, "rds+")
    assert said(found.detail).startswith("Chosen by RDS+: 0.100 (")


def test_a_border_between_alike_and_not() -> None:
    """0.125 counts; the end of the interval decides, not the mean."""
    near = measurements(random=sizes(budget=2.1, all=2.0))
    assert judge(near).kind == "fewer"
    assert judge(replace(near, alike=0.04)).kind == "all"
    wide = dict(near.random) | {BUDGET: trained(2.1, spread=0.1)}
    assert judge(replace(near, random=wide)).kind != "fewer"
    noisy = dict(near.random) | {BUDGET: trained(2.1, noise=1.0)}
    assert judge(replace(near, random=noisy)).kind != "fewer"


def test_nothing_is_alike_to_rows_trained_on_for_too_few_passes() -> None:
    random = sizes(budget=2.0, all=2.0)
    assert judge(measurements(random=random)).kind == "fewer"
    found = judge(measurements(random=random, settled=False))
    assert found.kind == "too few"
    assert "trained on for too few passes to judge" in found.detail


def test_more_than_the_budget() -> None:
    found = judge(measurements(random=sizes(budget=2.4, large=2.1)))
    assert (found.kind, found.rows) == ("more", 420)
    assert "All 2,108 have not been measured." in found.sentence
    assert found.lacking is not None


def test_choose() -> None:
    choices = {"rds+": trained(2.3), "best-of": trained(2.35)}
    found = judge(measurements(random=sizes(budget=2.4), choices=choices))
    assert (found.kind, found.rows, found.method) == ("choose", BUDGET, "rds+")
    assert said(found.sentence).startswith("Choose by RDS+: 0.100 (0.0")
    assert said(found.sentence).endswith("nats per token lower than random rows.")
    assert found.detail == "All 2,108 rows have not been measured."


def test_random_rows_will_do() -> None:
    found = judge(
        measurements(
            random=sizes(budget=2.4), choices={"rds+": trained(2.39), "best-of": trained(2.41)}
        )
    )
    assert (found.kind, found.rows, found.method) == ("random", BUDGET, "random")
    assert said(found.sentence).startswith(
        "Random rows will do at this budget; save your time: neither gains 0.10"
    )
    assert "(RDS+ or best-of; the most, RDS+, 0.010 (-0.0" in said(found.sentence)


@pytest.mark.parametrize(
    ("what", "spread", "noise"), [("trainings", 0.3, 0.05), ("test rows", 0.01, 2.0)]
)
def test_both_intervals_have_to_carry_a_claim(what: str, spread: float, noise: float) -> None:
    base = sizes(budget=2.4)
    sharp = trained(2.3, spread=0.01, noise=0.05)
    assert judge(measurements(random=base, choices={"rds+": sharp})).kind == "choose"
    blurred = trained(2.3, spread=spread, noise=noise)
    found = judge(measurements(random=base, choices={"rds+": blurred}))
    assert found.kind == "too few"
    assert found.lacking is not None
    assert found.lacking.what == what
    assert found.lacking.factor > 1
    assert found.sentence.startswith(f"Too few {what} to tell: RDS+")


def test_what_is_lacking_is_that_much() -> None:
    """With so many times as many trainings, the verdict that the means call for is there."""
    base = {BUDGET: trained(2.4, 10, 0.3, 0.01)}
    choice = trained(2.3, 10, 0.3, 0.01)
    found = judge(measurements(random=base, choices={"rds+": choice}))
    assert found.kind == "too few"
    assert found.lacking is not None
    times = round(found.lacking.factor + 0.5)

    def repeated(one: Measured) -> Measured:
        return replace(one, values=one.values * times)

    found = judge(
        measurements(random={BUDGET: repeated(base[BUDGET])}, choices={"rds+": repeated(choice)})
    )
    assert found.kind in ("choose", "random")


def test_several_choices_share_one_level() -> None:
    """Better at 95 % alone; beside two others, each has 98.3 %."""
    random = {BUDGET: trained(2.4, 10, 0.05)}
    choice = trained(2.365, 10, 0.05)
    assert judge(measurements(random=random, choices={"rds+": choice})).kind == "choose"
    others = {"rds+": choice, "best-of": trained(2.41), "bm25": trained(2.42)}
    found = judge(measurements(random=random, choices=others))
    assert found.kind != "choose"
    base = random[BUDGET]
    half = difference_interval(choice.values, base.values, 1 - 0.05 / 3)
    assert found.against["rds+"].over_trainings == pytest.approx(half)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"random": {BUDGET: trained(2.4, 2)}}, "Too few trainings to tell: 2 on random rows"),
        ({"random": {}}, "Too few trainings to tell: 0 on random rows"),
        ({"untrained": None}, "Too few trainings to tell"),
        ({"untrained": untrained(2.4), "random": {BUDGET: trained(2.4)}}, "teach anything"),
    ],
)
def test_too_few(changes: dict[str, object], sentence: str) -> None:
    found = judge(measurements(**changes))
    assert found.kind == "too few"
    assert sentence in found.sentence
    assert found.lacking is not None
    assert found.method == "random"


@pytest.mark.parametrize("rows", [29, 30])
def test_thirty_test_rows_are_the_least(rows: int) -> None:
    def cut(one: Measured) -> Measured:
        return replace(one, by_row=one.by_row[:rows])

    whole = measurements()
    assert whole.untrained is not None
    random = {n: cut(one) for n, one in whole.random.items()}
    few = replace(whole, tokens=TOKENS[:rows], untrained=cut(whole.untrained), random=random)
    found = judge(few)
    if rows == 30:
        assert found.kind == "all"
        return
    assert found.kind == "too few"
    assert "Too few test rows to tell: 29, and at least 30" in found.sentence
    assert found.lacking is not None
    assert found.lacking.what == "test rows"


def test_a_choice_of_two_trainings_is_not_told() -> None:
    found = judge(measurements(random=sizes(budget=2.4), choices={"rds+": trained(2.0, 2)}))
    assert found.kind == "too few"
    assert not found.against


def test_do_not_train() -> None:
    found = judge(measurements(untrained=untrained(1.9)))
    assert (found.kind, found.rows) == ("none", 0)
    assert "worse than no training, by 0.100 (0.0" in said(found.sentence)


def test_a_difference_has_the_intervals_of_its_parts() -> None:
    a, b = trained(2.3, 4, 0.1), trained(2.4, 6, 0.2)
    found = difference(a, b, TOKENS, 0.9)
    assert found.mean == pytest.approx(-0.1)
    assert found.over_trainings == difference_interval(a.values, b.values, 0.9)
    assert found.over_rows == question_bootstrap(a.by_row - b.by_row, TOKENS, level=0.9)
    assert found.over_rows is not None
    assert found.low == min(found.mean - (found.over_trainings or 0), found.over_rows[0])
    assert found.high == max(found.mean + (found.over_trainings or 0), found.over_rows[1])
    for one, other in ((a, untrained()), (untrained(), a)):
        assert difference(one, other, TOKENS).over_trainings == t_interval(a.values)
    alone = difference(trained(2.3, 1), trained(2.4, 1), TOKENS)
    assert word(alone) == "too few"
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_the_interval_of_one_training_is_that_of_one_of_the_budgets() -> None:
    base = trained(2.4, 4, 0.1)
    assert half_of(base, None) == t_interval(base.values)
    assert half_of(trained(2.0, 1), base) == pytest.approx(2 * (t_interval(base.values) or 0))
    assert half_of(untrained(), base) is None
    assert half_of(trained(2.0, 1), None) is None


@pytest.mark.slow
def test_of_rows_that_are_no_better_few_are_claimed_to_be() -> None:
    """Ten draws, three choices of five trainings, all alike: a choice is claimed in under 5 %."""
    claims, times = 0, 120
    for number in range(times):
        generator = np.random.default_rng(number)

        def made(count: int, own: float, generator: np.random.Generator = generator) -> Measured:
            values = 2.4 + generator.normal(0.0, own, count)
            noise = generator.normal(0.0, 0.05, ROWS)
            return Measured(BUDGET, tuple(values), LEVEL + values.mean() + noise)

        choices = {name: made(5, 0.05) for name in ("rds+", "best-of", "bm25")}
        found = judge(measurements(random={BUDGET: made(10, 0.05)}, choices=choices))
        claims += found.kind == "choose"
    assert claims / times < 0.05


def test_what_soft_labels_gain() -> None:
    found = judge(measurements(labelled=trained(2.2)))
    assert found.kind == "all"
    assert re.search(
        r"With soft labels of the model trained on all rows, 105 random rows end 0\.200 "
        r"\(0\.1\d\d to 0\.2\d\d\) nats per token lower, 50 % of the way to all rows\.$",
        said(found.detail),
    )
    assert found.labels is not None
    assert found.labels.high < 0
    assert "soft labels" not in judge(measurements()).detail
    assert judge(measurements()).labels is None


def test_soft_labels_that_gain_nothing_are_said_so() -> None:
    found = judge(measurements(labelled=trained(2.4, spread=0.05)))
    assert re.search(r"105 random rows are not known to end lower: -?0\.0", said(found.detail))
    assert found.labels is not None
    assert found.labels.high > 0


def test_two_trainings_on_soft_labels_say_nothing() -> None:
    assert judge(measurements(labelled=trained(2.2, 2))) == judge(measurements())


def test_soft_labels_are_not_offered_where_few_rows_do() -> None:
    random = sizes(small=2.01, budget=2.005, all=2.0)
    found = judge(measurements(random=random, labelled=trained(1.9)))
    assert found.kind == "fewer"
    assert found.labels is None
    assert "soft labels" not in found.detail


def test_soft_labels_are_no_choice_of_rows() -> None:
    found = judge(measurements(labelled=trained(1.5), choices={"rds+": trained(2.3)}))
    assert found.method == "rds+"
    assert found.margin == pytest.approx(0.05 * 2.5), "the best set is of real rows alone"

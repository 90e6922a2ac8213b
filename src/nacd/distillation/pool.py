"""Students part-way through their training, from which late windows start.

The meta-gradients of two whole trainings in two orders hardly agree; differentiated through their
last epoch alone they agree several times as well, at a fraction of the time (docs/results.md). So
an outer step may start from a student that was trained up to there, on the rows as they are now:

    student n    trained from initial values and in an order of its own, up to the window; it lives
                 in place n % size of the pool
    outer step t takes, in place i, the last student n <= size - 1 + t // renew with n % size = i

A student is trained when it is first asked for, and kept as a file, so that a run that goes on has
the same ones. The window itself has another order at every outer step.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nacd.config import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.data import training_order
from nacd.distillation.outer import OuterLoop, Segment
from nacd.store.cache import Cache
from nacd.training.inner import InnerLoop, Start
from nacd.training.student import POOL_SEED
from nacd.training.update import initial_state


def window_of(outer: OuterLoopConfig, recipe: Recipe, rows: int) -> tuple[int, int]:
    """Inner steps that a student of the pool is trained for, and those differentiated through.

    The first is 0 where there is no pool: with --pool 0, for `trajectory`, and where the window is
    the whole training.
    """
    total = recipe.total_steps(rows)
    if not outer.pool or outer.objective == "trajectory":
        return 0, min(outer.window or total, total)
    window = outer.window or -(-rows // recipe.batch_size)  # 0: the last epoch
    return max(0, total - window), min(window, total)


def students(outer: OuterLoopConfig, steps: int) -> int:
    """How many students a pool trains in so many outer steps, at most."""
    return outer.pool + max(0, steps - 1) // outer.renew if steps else 0


class Pool:
    """The students of a run.

    Args:
        loop: of the trainings.
        rows: rows that are trained on.
        ahead: steps that a student is trained for.
        config: size of the pool, and how often it is renewed.
        folder: keeps the students.
    """

    def __init__(
        self, loop: InnerLoop, rows: int, ahead: int, config: OuterLoopConfig, folder: Path
    ):
        self.loop, self.rows, self.ahead, self.folder = loop, rows, ahead, folder
        self.size, self.renew = config.pool, config.renew
        self._kept: dict[int, tuple[int, Start]] = {}

    def late(self, whole: Segment, step: int, place: int, outer: OuterLoop) -> Segment:
        """The last steps of a whole training, from where the student in `place` is."""
        place %= self.size
        student = self.student(place, step)
        if self._kept.get(place, (-1, None))[0] != student:
            self._kept[place] = (student, self._student(student, place, outer))
        at = self._kept[place][1]
        device = self.loop.model.device
        start = Start(at.theta.to(device), tuple(s.to(device) for s in at.state), at.count)
        return replace(whole, start=start, order=whole.order[self.ahead :])

    def student(self, place: int, step: int) -> int:
        """Number of the student that is in a place at an outer step."""
        latest = self.size - 1 + step // self.renew
        return latest - (latest - place) % self.size

    def forget(self) -> None:
        """Remove the files: learning has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _student(self, number: int, place: int, outer: OuterLoop) -> Start:
        """A student from its file, or trained now and kept."""

        def trained() -> dict[str, Tensor]:
            at = self._trained(number, outer)
            state = {f"state.{i}": tensor for i, tensor in enumerate(at.state)}
            return {"theta": at.theta} | state

        of = {"student": str(number)}
        found = Cache(self.folder).tensors(str(place), trained, of=of, anew=True)
        state = tuple(found[name] for name in sorted(found) if name != "theta")
        return Start(found["theta"], state, self.ahead)

    def _trained(self, number: int, outer: OuterLoop) -> Start:
        recipe, seed = self.loop.recipe, POOL_SEED + number
        theta = self.loop.model.fresh_theta(seed)
        order: Sequence[Sequence[int]] = training_order(
            self.rows, recipe.batch_size, self.ahead, recipe.order_seed(seed)
        )
        vectors = outer.vectors().detach()
        at, _ = self.loop.run(
            Start(theta, initial_state(recipe, theta)),
            [outer.pseudo.batch(rows) for rows in order],
            outer.log_rate.to(vectors),
            vectors,
        )
        return at

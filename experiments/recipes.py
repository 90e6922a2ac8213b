"""Does the gain survive the recipe? Learn through three inner loops, train by the final one.

    python experiments/recipes.py --data FOLDER [--rows 64] [--outer-steps 20] [--out FOLDER]

The same seeds are learned through short SGD loops from LoRA's initial values, through windows along
the student's own AdamW path, and through the whole AdamW recipe. Each is then trained on by the
final recipe (AdamW, one epoch, in the file's order): how much of the gain is left? All losses are
of validation rows, means of two trainings from initial values that learning did not see; report
rows are not read. Each inner loop is a resumable folder. FOLDER holds ARC-Easy's train.jsonl and
validation.jsonl.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from stage import opened, parser

import nacd
from nacd.distillation.learn import Distiller, draw, make_starts
from nacd.meta import make_engine
from nacd.store.run import RunFolder
from nacd.terminal.progress import Progress
from nacd.training.student import CHECK_SEED, TUNING_SEED, mean_nll, train_student

SHORT = 4
"""Inner steps of the SGD loops and of the windows."""
SGD_RATES = (0.03, 0.1, 0.3, 1.0)
FINAL = nacd.Recipe(batch_size=8, epochs=1, learning_rate=2e-3, shuffle=False)
SGD = nacd.Recipe(optimizer="sgd", batch_size=8, steps=SHORT, schedule="constant", warmup=0.0)
"""Its rows are drawn anew for every loop: in order, four steps would see the first alone."""
WHOLE, WINDOWS, LOOPS = "whole recipe", f"windows of {SHORT}", f"SGD, {SHORT} steps"


def main() -> None:
    flags = parser(__doc__, rows="64", out="runs/recipes")
    flags.add_argument("--outer-steps", type=int, default=20)
    options = flags.parse_args()
    progress, steps = Progress(), options.outer_steps
    # the looks before the first and after the last step: losses under the loop's own recipe
    config, prepared = opened(
        options, progress, outer_steps=steps, check_every=steps, check_trainings=2
    )
    model, folder = prepared.model, RunFolder(options.out)
    seeds = make_starts(prepared, draw(prepared.train, config.size, 0), config.outer.learn)
    engine = make_engine("one-sided", config.outer.fd_eps)

    def sgd_rate() -> dict[str, Any]:
        tried = {
            rate: mean_nll(
                model,
                train_student(model, replace(SGD, learning_rate=rate), seeds.pseudo, TUNING_SEED),
                prepared.development.rows,
            )
            for rate in SGD_RATES
        }
        return {"rate": min(tried, key=lambda rate: tried[rate]), "nll": [*tried.items()]}

    found = folder.once("sgd-rate", sgd_rate)
    sgd = replace(SGD, learning_rate=found["rate"])
    tried = ", ".join(f"{nll:.3f} at {rate:g}" for rate, nll in found["nll"])
    print(f"SGD's learning rate, validation NLL on the untouched starting rows: {tried}")

    def final(distiller: Distiller) -> dict[str, Any]:
        text = distiller.settled(distiller.text(distiller.outer.projection.tokens()))
        soft = distiller.outer.vectors()
        nll: dict[str, list[float]] = {"soft": [], "text": []}
        for seed in range(CHECK_SEED, CHECK_SEED + config.outer.check_trainings):
            for name, data, vectors in (("soft", seeds.pseudo, soft), ("text", text, None)):
                theta = train_student(model, FINAL, data, seed, vectors=vectors)
                nll[name].append(mean_nll(model, theta, prepared.development.rows))
        return {name: statistics.fmean(values) for name, values in nll.items()}

    print(f"{'':<16}{'own recipe':>20}{'':>10}{'final recipe':>20}{'':>12}{'':>9}")
    heads = ("seeds", "soft", "gain", "seeds", "soft", "gain", "text", "changed", "s/step")
    print(f"{'learned by':<16}" + "".join(f"{head:>9}" for head in heads), flush=True)
    untouched = None
    for name, recipe, window in (
        (WHOLE, FINAL, 0),
        (WINDOWS, FINAL, SHORT),
        (LOOPS, sgd, 0),
    ):
        outer = replace(config.outer, window=window)
        place = options.out / name.replace(" ", "-").replace(",", "")
        mine = replace(config, outer=outer)
        distiller = Distiller(mine, prepared, seeds, recipe, engine, [], place, progress)
        learned = distiller.run()
        first, last = learned.metrics[0], learned.metrics[-1]
        after = {part: last[f"development_{part}"] for part in ("soft", "text")}
        if recipe != FINAL:  # else the last look was just this
            after = folder.once(f"{place.name}/final", lambda made=distiller: final(made))
        own, soft = first["development_text"], last["development_soft"]
        untouched = own if untouched is None else untouched  # the whole recipe is the final one
        steps = [row["seconds"] for row in learned.metrics[1:-1]]
        figures = (own, soft, soft - own, untouched, after["soft"], after["soft"] - untouched)
        print(
            f"{name:<16}"
            + "".join(f"{x:9.3f}" for x in (*figures, after["text"]))
            + f"{last['tokens_changed']:9.1%}{statistics.median(steps or [0.0]):9.0f}",
            flush=True,
        )
    print(f"rows {len(seeds.rows)}, outer steps {options.outer_steps}")


if __name__ == "__main__":
    main()

"""What a user may set, as frozen dataclasses: a field is a flag, its docstring the help."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from nacd.config.budget import Budget, budget_text, parse_budget
from nacd.config.budget import budget_rows as budget_rows
from nacd.config.limits import MOST, check_counts, check_seed
from nacd.config.recipe import Recipe
from nacd.config.settings import Folder, check_values, convert
from nacd.data.choices import Answers
from nacd.data.given import name_of
from nacd.errors import UserError
from nacd.store.renamed import old_names_too
from nacd.store.tracking import check_tracker

if TYPE_CHECKING:
    from nacd.config.settings import Converted

    Rows = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
    Data = Converted[str, Rows]
    OtherData = Converted[str | None, Rows | None]
else:  # what flags take: from Python, rows may be given too
    _NEEDED = arg(help_behavior_hint="(required; of `nacd evaluate` unless it has --tasks)")
    Data, OtherData = Annotated[str, _NEEDED], str | None
UNNAMED: Any = ""
NONE: Any = None
LADDER = ("zero-shot", "random", "seeds", "random-prompts", "soft", "text", "full")


@dataclass(frozen=True)
class ModelConfig:
    """Which model is loaded, how, and the LoRA that is put on it."""

    model: str = "smollm2"
    """Hub id, folder, GGUF file, or `smollm2` (SmolLM2-135M-Instruct out of a Python package)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Number format of the frozen weights; LoRA's are never below float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation, by its name in transformers."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; `auto` takes CUDA, then MPS, then the CPU."""
    lora_rank: int = 8
    """Rank of the LoRA update."""
    lora_alpha: float = 16.0
    """LoRA's numerator: the update is scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get LoRA (`q_proj v_proj`), or `all-linear`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    micro_tokens: int = 0
    """Most tokens that go through the model at once (a longer row goes alone); the gradient is the
    whole batch's. 0: 384 on the CPU, 2048 elsewhere, less where memory is short."""


@dataclass(frozen=True)
class ReadConfig:
    """Which rows, and how they are read and rendered."""

    data: Data = UNNAMED
    """JSONL, JSON, CSV or Parquet file, a pattern of files (`'shards/*.jsonl'`), or a hub id
    (`owner/name`, `owner/name:config:split`)."""
    columns: tuple[str, ...] = ()
    """Column names where they are not the usual ones: `instruction=question output=reply`."""
    ignore_columns: tuple[str, ...] = ()
    """Columns, and keys of turns, to leave out that would otherwise be refused: `tools weight`."""
    choices: Literal["cloze", "letter"] = "cloze"
    """Multiple choice: answer with the choice's text, or with its letter."""
    answers: Answers = "auto"
    """How multiple-choice rows name their answers: by number from 0 or from 1, by letter, by text;
    `auto`: whichever fits all rows of a file."""
    template: str = "auto"
    """`auto`, `chat`, `qa`, `alpaca`, `plain`, `verbatim`, or text with {prompt}, {response}."""
    max_tokens: int = 512
    """Longest row in tokens, prompt and response; longer ones are dropped and counted."""

    def __post_init__(self) -> None:
        """Name the data by its path or hub id; rows in memory are written to a file."""
        for name in {"data", "target", "heldout"} & vars(self).keys():
            setting = f"{type(self).__name__}({name}=...)"
            convert(self, **{name: lambda given, setting=setting: name_of(given, setting)})

    def mapping(self) -> dict[str, str]:
        """`columns` as a mapping from our names to the file's.

        Raises:
            UserError: an entry without `=`, or a name that stands twice.
        """
        pairs = [entry.partition("=") for entry in self.columns]
        for name, equals, column in pairs:
            if not (name and equals and column):
                raise UserError(
                    f"--columns {name}: expected NAME=COLUMN, for example instruction=question."
                )
        mapping = {name: column for name, _, column in pairs}
        if len(mapping) < len(pairs):
            raise UserError(f"--columns {' '.join(self.columns)}: a name stands twice; keep one.")
        return mapping


@dataclass(frozen=True)
class DataConfig(ReadConfig):
    """Which rows, how they are read and rendered, and what is held out."""

    target: OtherData = NONE
    """File or hub id of target rows; without it, some rows of --data are set aside for them."""
    heldout: OtherData = NONE
    """Held-out file or hub id (a third development, the rest report); else rows of --data."""
    target_rows: int = 64
    """Most rows set aside as target rows."""
    group_column: str = ""
    """Column that names a row's group (a subject, a source): strata, and the subtasks of LESS."""
    license: str = ""
    """Licence of --data by the hub's name (`apache-2.0`), for the card; empty: the hub card's."""
    language: str = ""
    """Languages of --data by the hub's codes (`en`, `en,de`), for the data card; empty: unsaid."""


@dataclass(frozen=True)
class ExpertConfig:
    """How expert trajectories of training on the full set are recorded."""

    experts: int = 1
    """K, the number of experts; each has a seed of its own."""
    expert_optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the experts."""
    expert_rate: float = 1e-3
    """Peak learning rate of the experts."""
    expert_epochs: float = 1.0
    """Passes of an expert over the full set."""
    expert_steps: int = 0
    """Steps of an expert; 0: as many as --expert-epochs gives."""
    expert_batch: int = 16
    """Rows a step of an expert."""
    expert_momentum: float = 0.0
    """Momentum of the experts' SGD."""
    expert_from: tuple[str, ...] = ()
    """Trainer output folders (peft checkpoints of one run each) to import instead of training."""
    snapshot_every: int = 4
    """S: a snapshot (with the optimiser's moments) every S steps."""

    def check(self) -> None:
        """Refuse what no expert can be trained with.

        Raises:
            UserError: a flag's value is out of range; it is named.
        """
        check_counts(
            ("--experts", self.experts, 1),
            ("--snapshot-every", self.snapshot_every, 1),
            ("--expert-batch", self.expert_batch, 1),
        )
        if not 0 < self.expert_rate < math.inf:
            raise UserError(f"--expert-rate {self.expert_rate}: must be above 0.")
        lasts = 0 < self.expert_epochs < math.inf
        if self.expert_steps < 0 or (self.expert_steps == 0 and not lasts):
            raise UserError(
                f"--expert-steps {self.expert_steps} --expert-epochs {self.expert_epochs}: give "
                "one above 0."
            )
        for flag, length in (
            ("--expert-steps", self.expert_steps),
            ("--expert-epochs", self.expert_epochs),
        ):
            if length > MOST:
                raise UserError(f"{flag} {length:g}: must be at most {MOST:,}.")

    def check_rows(self, base: Recipe, rows: int) -> None:
        """Refuse experts that their warm-up would keep at a learning rate of 0.

        Raises:
            UserError: as `Recipe.check_rows`, by the experts' flags.
        """
        self.recipe(base).check_rows(
            rows, batch="--expert-batch", epochs="--expert-epochs", steps="--expert-steps"
        )

    def recipe(self, base: Recipe) -> Recipe:
        """The experts' recipe; schedule, clipping and AdamW's constants are the student's.

        The full set is always shuffled: its file's order may be one of subjects.
        """
        return dataclasses.replace(
            base,
            shuffle=True,
            optimizer=self.expert_optimizer,
            learning_rate=self.expert_rate,
            epochs=self.expert_epochs,
            steps=self.expert_steps,
            batch_size=self.expert_batch,
            momentum=self.expert_momentum,
        )


@old_names_too
@dataclass(frozen=True)
class OuterLoopConfig:
    """How the pseudo-prompts are learned."""

    objective: Literal["auto", "target-loss", "train-loss", "trajectory"] = "auto"
    """Loss after training on target rows, or on other training rows; or the paper's `trajectory`.
    `auto`: on target rows where --target names them, else on training rows."""
    objective_rows: int = 64
    """`train-loss`: rows of it, other training rows (never seeds) at every outer step."""
    outer_steps: int = 40
    """Updates of the prompts; each runs a training, or its end, and sweeps back."""
    learn: str = "prompt"
    """Learnable positions: `prompt`, or `prefix:K` for K extra tokens before it."""
    projection: Literal["nearest", "straight-through", "simplex"] = "simplex"
    """How vectors become tokens (`nearest` is the paper's)."""
    engine: Literal["auto", "exact", "first-order", "one-sided", "tesla"] = "auto"
    """Meta-gradient engine: `first-order` is safe, `one-sided` a third faster and coarser, `exact`
    needs most memory; `auto` asks the doctor's short check."""
    fd_eps: float = 2e-3
    """Finite-difference step of the first-order engines, as a share of |theta|."""
    window: int = 0
    """Inner steps differentiated through: the last ones, from a student of --pool (0: the last
    epoch); without a pool, some at a random place (0: the whole training)."""
    pool: int = 3
    """Students, trained on the current rows up to the window, each in an order of its own, that
    inner loops start from in turn; 0: every inner loop trains from the beginning."""
    renew: int = 4
    """Outer steps after which one student of the pool makes room for a new one."""
    segments: int = 1
    """Inner loops averaged in one outer step: less noise, at their time."""
    agreement: int = 3
    """Inner loops, each in an order of its own, whose meta-gradients are held against each other
    before anything is learned (`nacd doctor`, too); 0: none."""
    expert_start: int = 0
    """`trajectory`: latest expert step (of those with a snapshot) that a segment starts from."""
    expert_ahead: int = 0
    """`trajectory`: M, expert steps from a segment's start to its goal; 0: to the expert's end."""
    step_size: float = 0.0
    """Adam's learning rate on what is learned; 0: 0.02 for vectors, 0.2 for simplex logits."""
    rate_step_size: float = 0.0
    """Adam's learning rate on the student's log learning rate; 0 keeps it fixed."""
    trim: float = 0.01
    """Share of each inner step's gradient cotangents, the largest, that are clamped; 0: none."""
    beta: float = 0.0
    """Weight of the neighbour regulariser, which draws vectors (`nearest`) to tokens; 0: off."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of the neighbour regulariser and of the nearest rows."""
    candidates: int = 16
    """`simplex`: candidate tokens a position: the seed's, neighbours, the model's guesses."""
    start_share: float = 0.6
    """`simplex`: probability of the starting row's own token at the start."""
    cold: float = 0.15
    """`simplex`: softmax temperature at the end (1 at the start)."""
    check_every: int = 10
    """Outer steps between two looks at the development rows."""
    check_trainings: int = 3
    """Trainings averaged in such a look."""


def decided(outer: OuterLoopConfig, data: DataConfig) -> OuterLoopConfig:
    """The outer loop with its objective named."""
    if outer.objective != "auto":
        return outer
    return dataclasses.replace(outer, objective="target-loss" if data.target else "train-loss")


@dataclass(frozen=True)
class SelectionConfig:
    """How real rows are chosen."""

    dedup: float = 0.0
    """Leave out rows whose words are this alike (Jaccard, MinHash) to a kept row's; 0: none."""
    stratify: bool = False
    """Choose from every group of rows (--group-column) in proportion to its size."""
    round_robin: bool = False
    """`less`: target rows take turns to choose, instead of each row's largest subtask score."""
    tries: int = 16
    """`best-of`: random draws that are trained on."""
    judge: Literal["auto", "target", "train"] = "auto"
    """`best-of`, `swaps`: rows whose loss decides: target rows, or 256 training rows set aside.
    `auto`: target rows where --target names them, else training rows."""
    warmup_share: float = 0.05
    """`less`: share of the training rows that the warm-up trains on."""
    warmup_epochs: int = 4
    """`less`: epochs of the warm-up; each ends with a checkpoint that features are taken at."""
    projection_dim: int = 8192
    """`less`: length that gradients are projected to."""
    minutes: float = 30.0
    """`swaps`: time of the search, all calls together; more of it goes on from where it ended."""
    swaps_from: str = "random"
    """`swaps`: the rows that it begins with: `random`, or another method."""
    also: tuple[str, ...] = ()
    """`swaps`: further models that weigh and judge; what is kept lowers the mean loss of all."""
    also_rates: tuple[float, ...] = ()
    """`swaps`: learning rates of the models of --also, in their order; none: --learning-rate."""
    weight_passes: int = 2
    """`trajectory`: how often every row is weighed, each time among other rows."""


def with_judge(selection: SelectionConfig, data: DataConfig) -> SelectionConfig:
    """The settings of a choice with the judge of `best-of` and `swaps` named."""
    if selection.judge != "auto":
        return selection
    return dataclasses.replace(selection, judge="target" if data.target else "train")


@old_names_too
@dataclass(frozen=True)
class DistillConfig:
    """`nacd distill`: from a data file to distilled text."""

    out: Folder = Folder(Path("runs/distill"))
    """Run folder; the same command again goes on where it stopped."""
    budget: Budget = Budget("5%")
    """Size of the distilled set: rows (`112`), tokens (`20000t`) or a percentage (`5%`) of the
    training rows that are left once the held-out parts are set aside."""
    seed: int = 0
    """Seed of everything that is drawn."""
    start_by: str = "random"
    """How the starting rows are chosen: `random`, or a method of `nacd select`."""
    compare: tuple[str, ...] = LADDER
    """Rows of the final table; `full` trains on all rows: leave it out if that is dear."""
    trainings: int = 3
    """Trainings behind each row of the table, each of another seed (`random`: of other rows)."""
    tune: bool = False
    """Find learning rate and epochs first, on validation rows, by whole trainings on the starting
    rows; off: train by those given."""
    tune_rates: tuple[float, ...] = ()
    """Old, gone in the next release: learning rates alone to try first; see --tune."""
    full_epochs: float = 1.0
    """Epochs of the table's `full` row (also shown at equal steps)."""
    track: str = ""
    """Send metrics to a tracker too: `trackio`, `tensorboard` or `wandb`, offline; empty: none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    outer: OuterLoopConfig = field(default_factory=OuterLoopConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        """Keep a path and a text, however they were given."""
        convert(self, out=Path, budget=budget_text)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: a flag's value is out of range; it is named.
        """
        check_values(self)
        self.recipe.check()
        check_tuning(self.tune, self.tune_rates, self.recipe)
        self.expert.check()
        check_tracker(self.track)
        if not self.data.data:
            raise UserError(
                "--data is missing: give a JSONL, JSON, CSV or Parquet file, or a hub id."
            )
        check_counts(
            ("--outer-steps", self.outer.outer_steps, 0),
            ("--segments", self.outer.segments, 1),
            ("--objective-rows", self.outer.objective_rows, 1),
            ("--check-every", self.outer.check_every, 1),
            ("--check-trainings", self.outer.check_trainings, 1),
            ("--candidates", self.outer.candidates, 2),
            ("--window", self.outer.window, 0),
            ("--pool", self.outer.pool, 0),
            ("--agreement", self.outer.agreement, 0),
            ("--renew", self.outer.renew, 1),
            ("--trainings", self.trainings, 1),
            ("--lora-rank", self.model.lora_rank, 1),
            ("--micro-tokens", self.model.micro_tokens, 0),
            ("--max-tokens", self.data.max_tokens, 2),
            ("--target-rows", self.data.target_rows, 0),
            ("--expert-start", self.outer.expert_start, 0),
            ("--expert-ahead", self.outer.expert_ahead, 0),
            ("--step-size", self.outer.step_size, 0),
            ("--rate-step-size", self.outer.rate_step_size, 0),
            ("--beta", self.outer.beta, 0),
        )
        for flag, value in (
            ("--fd-eps", self.outer.fd_eps),
            ("--full-epochs", self.full_epochs),
            *(("--tune-rates", rate) for rate in self.tune_rates),
        ):
            if not 0 < value <= MOST:
                raise UserError(f"{flag} {value}: must be above 0 and at most {MOST:,}.")
        if self.outer.agreement == 1:
            raise UserError("--agreement 1: one inner loop agrees with itself; give 2, 3, or 0.")
        if not 0 < self.outer.start_share < 1:
            raise UserError(f"--start-share {self.outer.start_share}: must lie between 0 and 1.")
        if not 0 <= self.outer.trim < 1:
            raise UserError(f"--trim {self.outer.trim}: a share, at least 0 and below 1.")
        if not self.outer.cold > 0:
            raise UserError(f"--cold {self.outer.cold}: a temperature, must be above 0.")
        if not re.fullmatch(r"prompt|prefix:[1-9]\d*", self.outer.learn):
            raise UserError(f"--learn {self.outer.learn}: give `prompt`, or `prefix:8`, say.")
        digits = self.outer.learn.removeprefix("prompt").removeprefix("prefix:")
        if len(digits) > 7 or int(digits or 0) >= self.data.max_tokens:
            raise UserError(
                f"--learn {self.outer.learn}: a prefix must be shorter than --max-tokens "
                f"{self.data.max_tokens}; give a shorter one."
            )
        check_seed(self.seed)
        unknown = sorted(set(self.compare) - set(LADDER))
        if unknown:
            raise UserError(
                f"--compare {' '.join(unknown)}: unknown; the rows are {', '.join(LADDER)} "
                "(for others: `nacd compare --methods`)."
            )
        parse_budget(self.budget)


def check_tuning(tune: bool, rates: tuple[float, ...], recipe: Recipe) -> None:
    """Refuse flags that say two things of how the recipe is found.

    Raises:
        UserError: `--tune` beside `--tune-rates` or `--steps`.
    """
    if tune and rates:
        raise UserError(
            "--tune finds learning rate and epochs together, --tune-rates the rate alone; drop "
            "--tune-rates."
        )
    if tune and recipe.steps:
        raise UserError(
            f"--steps {recipe.steps}: --tune finds the number of epochs; drop one of the two."
        )

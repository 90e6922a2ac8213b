"""What the commands may be told that neither distil nor compare: a field is a flag.

They stand apart from the commands so that flags are read, and help is shown, before PyTorch loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from nacd.config.budget import BudgetText, HasBudget, budget_text
from nacd.config.distill import DistillConfig
from nacd.config.methods import check_method
from nacd.config.model import ModelConfig
from nacd.config.outer import OuterLoopConfig
from nacd.config.recipe import Recipe
from nacd.config.rows import NONE, DataConfig, ReadConfig
from nacd.config.selection import SelectionConfig
from nacd.config.settings import Folder, OtherFolder, convert


@dataclass(frozen=True)
class SelectConfig(HasBudget):
    """`nacd select`: choose real rows of a data file."""

    out: Folder = Folder(Path("runs/select"))
    """Run folder; the same command again goes on where it stopped."""
    method: str = "rds+"
    """`random`, `best-of`, `swaps`, `winnow`, `longest`, `kcenter`, `bm25`, `rds+`, `less` or
    `trajectory`."""
    budget: BudgetText = BudgetText("5%")
    """What is chosen: rows (`112`), a percentage (`5%`) or tokens (`20000t`)."""
    seed: int = 0
    """Seed of everything that is drawn."""
    hold_out: bool = False
    """Set validation and test rows aside as `distill`, `compare` and `check` do, and write them to
    `splits/`; without this, they are chosen from too."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        """Keep a path and a text, however they were given."""
        convert(self, out=Path, budget=budget_text)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            UserError: an unknown method, or a flag's value out of range; it is named.
        """
        check_method(self.method, self.selection)
        shared = {
            name: getattr(self, name) for name in ("budget", "seed", "model", "data", "recipe")
        }
        DistillConfig(**shared).check()


@dataclass(frozen=True)
class TrainConfig:
    """`nacd train`: fine-tune a model on a data set with LoRA."""

    out: Folder = Folder(Path("runs/train"))
    """Folder that gets `adapter/` and `train.json`."""
    seed: int = 0
    """Seed of LoRA's initial values and, with --shuffle, of the rows' order."""
    track: str = ""
    """Send losses to a tracker too: `trackio`, `tensorboard` or `wandb`, offline; empty: none."""
    overwrite: bool = False
    """Replace an adapter that --out holds already."""
    soft_labels: OtherFolder = NONE
    """File of `nacd label`: a teacher's labels of these rows, for students of its tokenizer."""
    soft_weight: float = 1.0
    """Weight of --soft-labels in the loss; the rows' own tokens have the rest."""
    soft_prompts: bool = True
    """Learn from --soft-labels at the tokens of prompts, too; off: at those of responses alone."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ReadConfig = field(default_factory=ReadConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        """Keep paths, however they were given."""
        convert(self, out=Path, soft_labels=Path)


@dataclass(frozen=True)
class LabelConfig:
    """`nacd label`: a teacher's soft labels of some rows, for `nacd train --soft-labels`."""

    adapter: OtherFolder = NONE
    """Folder of a LoRA adapter on --model: the teacher, trained on all rows by `nacd train`, say;
    without it, the model as it is."""
    top: int = 64
    """Likeliest tokens that are kept at each place."""
    out: Folder = Folder(Path("runs/labels"))
    """Folder that gets `soft_labels.parquet`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ReadConfig = field(default_factory=ReadConfig)

    def __post_init__(self) -> None:
        """Keep paths, however they were given."""
        convert(self, adapter=Path, out=Path)


@dataclass(frozen=True)
class EvaluateConfig:
    """`nacd evaluate`: held-out response NLL, and accuracy by lm-eval."""

    adapter: OtherFolder = NONE
    """Folder of a LoRA adapter on --model, put on it by peft with its own rank, alpha and targets;
    without it, the model as it is."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval by name (they come from the hub)."""
    shots: int | None = None
    """Solved questions before each question of --tasks; by default the task's own number."""
    out: OtherFolder = NONE
    """File that gets the figures as JSON, beside standard output."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: ReadConfig = field(default_factory=ReadConfig)

    def __post_init__(self) -> None:
        """Keep paths, however they were given."""
        convert(self, adapter=Path, out=Path)


@dataclass(frozen=True)
class ReportConfig:
    """One self-contained HTML page of a run."""

    run: Positional[Path]
    """Run folder: the --out of `nacd distill`, `select`, `compare` or `check`."""
    out: Path | None = None
    """Where the page goes; without it, `report.html` in the run folder."""


@dataclass(frozen=True)
class RunsConfig:
    """The run folders under a folder: state and result of each."""

    folder: Positional[Path] = Path("runs")
    """Where to look."""
    json: bool = False
    """One JSON list instead of a table."""


@dataclass(frozen=True)
class ShowConfig:
    """Figures and rows of one run: distilled, chosen or recommended, or a comparison's table."""

    run: Positional[Path]
    """Run folder: the --out of `nacd distill`, `select`, `compare` or `check`."""
    rows: int = 10
    """Most rows shown: the first ones, of a distillation the most changed; 0: none."""
    json: bool = False
    """One JSON object instead of text; --rows then takes them in order."""


@dataclass(frozen=True)
class AuditConfig:
    """Copies of training and test rows, addresses, phone numbers and keys in a run's data set."""

    run: Positional[Path]
    """Run folder: the --out of `nacd distill`, `select` or `check`."""
    rows: int = 10
    """Most finds that are named one by one; 0: none."""
    json: bool = False
    """One JSON object instead of text, with every find."""


@dataclass(frozen=True)
class PushConfig:
    """`nacd push`: upload a run's data set to the Hugging Face hub."""

    run: Positional[Path]
    """Run folder of `nacd distill` or `nacd select`, or a data set folder."""
    to: str = ""
    """Name on the hub, with its owner: `owner/name`."""
    license: str = ""
    """Licence of the rows by the hub's name (`apache-2.0`), where the card does not say it."""
    public: bool = False
    """Make it public, if it is new; otherwise only its owner sees it."""
    yes: bool = False
    """Do it; without this, only list what would be uploaded."""


@dataclass(frozen=True)
class PlanConfig(HasBudget):
    """`nacd plan`: memory and work of `nacd distill`, before anything is loaded."""

    rows: int = 1000
    """Rows of the data file; the usual shares of them are set aside as test rows and the like."""
    tokens: int = 128
    """Mean tokens of a row, prompt and response."""
    max_tokens: int = 512
    """Tokens of the longest row."""
    budget: BudgetText = BudgetText("5%")
    """Size of the distilled set, as of `nacd distill`."""
    gpu_memory: str = ""
    """Memory of the card that it is planned for: `24GB`; empty: what is free on this machine."""
    tflops: float = 0.0
    """What the card does with this model, in 10^12 operations a second, as you measured it; 0:
    time is told in ordinary training steps."""
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: Recipe = field(default_factory=Recipe)
    outer: OuterLoopConfig = field(default_factory=OuterLoopConfig)

    def __post_init__(self) -> None:
        """Keep a text, however it was given."""
        convert(self, budget=budget_text)

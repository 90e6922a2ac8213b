"""The recipe's optimisers that a trainer of `transformers` does not have, as torch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nacd.config.recipe import Recipe
from nacd.model.lora import LoraModel
from nacd.training import update


class _RecipeOptimizer(torch.optim.Optimizer):
    """The recipe's own update as a torch optimiser: AdamW with an epsilon inside the root."""

    def __init__(self, parameters: list[Tensor], recipe: Recipe):
        super().__init__(parameters, {"lr": recipe.learning_rate})
        self.recipe = replace(recipe, clip=0.0)  # the trainer has clipped

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            rate = torch.tensor(float(group["lr"]))
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["moments"] = update.initial_state(self.recipe, p)
                moved, state["moments"] = update.step(
                    self.recipe, p, state["moments"], p.grad, rate.to(p), state["step"]
                )
                state["step"] += 1
                p.copy_(moved)


def own_optimizer(model: LoraModel, recipe: Recipe) -> torch.optim.Optimizer | None:
    """The optimiser, where the trainer has none of that kind."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            trainable(model),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    return _RecipeOptimizer(trainable(model), recipe) if recipe.root_eps else None


def trainable(model: LoraModel) -> list[Tensor]:
    """The parameters that are trained, in theta's order."""
    return [p for p in model.hf.parameters() if p.requires_grad]

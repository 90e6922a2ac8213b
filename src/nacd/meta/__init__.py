"""Meta-gradients through training: optimiser updates, the engines, the adjoint sweep."""

from nacd.meta.adjoint import (
    InnerLoop,
    MetaGradient,
    Objective,
    Start,
    Sweep,
    clamp_largest,
    meta_gradient,
    sweep,
    unrolled_meta_gradient,
)
from nacd.meta.engines import (
    PASSES,
    Engine,
    EngineName,
    Exact,
    FirstOrder,
    Products,
    make_engine,
)
from nacd.meta.weights import unvisited, weight_gradient
from nacd.training.update import State, clip, initial_state, step, step_vjp

__all__ = [
    "PASSES",
    "Engine",
    "EngineName",
    "Exact",
    "FirstOrder",
    "InnerLoop",
    "MetaGradient",
    "Objective",
    "Products",
    "Start",
    "State",
    "Sweep",
    "clamp_largest",
    "clip",
    "initial_state",
    "make_engine",
    "meta_gradient",
    "step",
    "step_vjp",
    "sweep",
    "unrolled_meta_gradient",
    "unvisited",
    "weight_gradient",
]

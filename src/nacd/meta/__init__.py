"""Meta-gradients through training: optimiser updates, the engines, the adjoint sweep."""

from nacd.meta.adjoint import (
    InnerLoop,
    MetaGradient,
    Objective,
    Start,
    clamp_largest,
    meta_gradient,
    unrolled_meta_gradient,
)
from nacd.meta.engines import Engine, EngineName, Exact, FirstOrder, Products, make_engine
from nacd.meta.update import State, clip, initial_state, step, step_vjp

__all__ = [
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
    "clamp_largest",
    "clip",
    "initial_state",
    "make_engine",
    "meta_gradient",
    "step",
    "step_vjp",
    "unrolled_meta_gradient",
]

"""Meta-gradients through training: optimiser updates, the engines, the adjoint sweep."""

from nacd.meta.adjoint import (
    MetaGradient,
    Objective,
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
    likely,
    make_engine,
)
from nacd.meta.weights import unvisited, weight_gradient

__all__ = [
    "PASSES",
    "Engine",
    "EngineName",
    "Exact",
    "FirstOrder",
    "MetaGradient",
    "Objective",
    "Products",
    "Sweep",
    "clamp_largest",
    "likely",
    "make_engine",
    "meta_gradient",
    "sweep",
    "unrolled_meta_gradient",
    "unvisited",
    "weight_gradient",
]

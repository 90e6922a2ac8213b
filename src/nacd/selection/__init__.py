"""Choosing real rows: a representation of the rows, a selector over it, filters, a budget."""

from nacd.config.methods import METHODS, MethodEntry, check_method
from nacd.selection.choice import (
    Chosen,
    Rankings,
    check_rows,
    choose,
    choose_once,
    rank,
)
from nacd.selection.method import Method, Ranking, Task, forward_flops
from nacd.selection.rounds import round_robin, subtask_max

__all__ = [
    "METHODS",
    "Chosen",
    "Method",
    "MethodEntry",
    "Ranking",
    "Rankings",
    "Task",
    "check_method",
    "check_rows",
    "choose",
    "choose_once",
    "forward_flops",
    "rank",
    "round_robin",
    "subtask_max",
]

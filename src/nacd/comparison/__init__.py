"""The ladder over methods, budgets, target models and seeds: `nacd compare`."""

from nacd.comparison.compare import Compared, compare, print_comparison
from nacd.comparison.config import CompareConfig

__all__ = ["CompareConfig", "Compared", "compare", "print_comparison"]

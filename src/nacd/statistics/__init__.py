"""Intervals of a mean and of a difference, and the one rule that says better or worse."""

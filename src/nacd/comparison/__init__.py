"""The results table over methods, budgets, target models and trainings: `nacd compare`."""

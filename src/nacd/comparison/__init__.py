"""The ladder over methods, budgets, target models and seeds: `nacd compare`."""

"""A run as one HTML page (`nacd report`), and what a run records for it."""

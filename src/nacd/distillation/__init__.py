"""Pseudo-prompts and how they are learned: neighbours, projections, objectives, the outer loop."""

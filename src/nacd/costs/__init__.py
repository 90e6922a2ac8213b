"""What a command will cost: one measured step, and forecasts of time, memory and disk from it."""

"""A causal language model with LoRA: loading, adapters, batches that fit, gradients row by row."""

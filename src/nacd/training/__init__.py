"""Training LoRA on rows and measuring the result: the inner loop, its optimiser, fine-tuning."""

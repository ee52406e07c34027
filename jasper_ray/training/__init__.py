"""Training: one TorchTrainer for each stage, one loop for all stages, on DeepSpeed."""

"""Training: one TorchTrainer a stage, one loop for all stages, DeepSpeed underneath."""

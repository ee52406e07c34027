"""A whole distillation: prepare, label, train stage after stage, measure."""

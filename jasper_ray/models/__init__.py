"""The student model and its files."""

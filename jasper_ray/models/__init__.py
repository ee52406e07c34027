"""What a student is made of, and how it lies on disk."""

"""What our speed is worth: each benchmark does the same work our way and a peer's way, in turn."""

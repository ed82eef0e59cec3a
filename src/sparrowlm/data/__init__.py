"""Text to tokens on disk, and tokens on disk to batches."""

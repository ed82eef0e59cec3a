"""The loop, what it needs around it, and what it may be asked to run."""

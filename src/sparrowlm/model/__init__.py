"""The Transformer and what belongs to it: attention, cache, head, counts."""

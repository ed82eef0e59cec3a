"""Text: reading documents, cutting them into tokens, and putting tokens back together."""

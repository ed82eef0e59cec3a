"""Moving in from other projects."""

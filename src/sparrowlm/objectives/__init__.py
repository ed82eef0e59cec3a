"""What the stages minimize."""

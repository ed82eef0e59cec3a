"""From a trained model to text: sampling, and the engine that runs it."""

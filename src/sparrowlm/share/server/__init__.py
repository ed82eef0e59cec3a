"""A run as an OpenAI-compatible server: routes, the engine's thread, limits."""

"""What a rollout cannot be."""

from __future__ import annotations

from sparrowlm.config.schema import Recipe, RolloutConfig
from sparrowlm.errors import ConfigError


def opens_thought(settings: RolloutConfig) -> bool:
    """Whether an answer begins with its reasoning: the reward `format` asks for a thought."""
    return "format" in settings.rewards


def check_rollout(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: settings of a rollout that are impossible, all in one message.
    """
    settings, faults = recipe.rollout, []
    for name, least in (("prompts", 1), ("group_size", 1), ("steps", 1), ("max_tokens", 1)):
        if getattr(settings, name) < least:
            faults.append(
                f"rollout.{name} is {getattr(settings, name)}, and must be {least} or more"
            )
    if recipe.stage == "grpo" and settings.group_size == 1:
        faults.append("rollout.group_size is 1: a completion alone is never better than its group")
    if settings.temperature <= 0:
        faults.append("rollout.temperature is 0: a group of equal completions teaches nothing")
    if not settings.rewards and not settings.reward_model:
        faults.append("rollout.rewards is empty: nothing says what is good")
    if settings.weights and len(settings.weights) != len(settings.rewards):
        faults.append(
            f"rollout.weights has {len(settings.weights)} numbers, and there are"
            f" {len(settings.rewards)} rewards"
        )
    if recipe.model.dropout or (recipe.lora.rank and recipe.lora.dropout):
        faults.append(
            "model.dropout and lora.dropout must be 0: what is trained is the policy that wrote"
        )
    if faults:
        raise ConfigError("; ".join(faults), where="[rollout]")

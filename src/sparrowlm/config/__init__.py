"""The settings of a recipe: their schema, their file format and their derived values."""

from sparrowlm.config.check import check_numbers
from sparrowlm.config.line import NamedStage, has_stages, load_stages
from sparrowlm.config.load import dump_recipe, find_recipe, load_recipe, recipe_from_dict
from sparrowlm.config.resolve import check_lora, learns_to_answer, lora_targets, resolve_model
from sparrowlm.config.schema import (
    CheckpointConfig,
    CleanConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    InitConfig,
    LoraConfig,
    MixConfig,
    ModelConfig,
    OptimConfig,
    PolicyConfig,
    PreferenceConfig,
    Recipe,
    ReportConfig,
    RolloutConfig,
    SamplesConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "CleanConfig",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "InitConfig",
    "LoraConfig",
    "MixConfig",
    "ModelConfig",
    "NamedStage",
    "OptimConfig",
    "PolicyConfig",
    "PreferenceConfig",
    "Recipe",
    "ReportConfig",
    "RolloutConfig",
    "SamplesConfig",
    "TokenizerConfig",
    "TrainConfig",
    "check_lora",
    "check_numbers",
    "dump_recipe",
    "find_recipe",
    "has_stages",
    "learns_to_answer",
    "load_recipe",
    "load_stages",
    "lora_targets",
    "recipe_from_dict",
    "resolve_model",
]

"""Every setting of a recipe, as frozen values; free of torch.

A comment behind a field is its help text, and `sparrow train RECIPE --help` prints it. Zero or an
empty string in a field marked "derived" means that `config.resolve` fills it in; code past that
point sees only resolved values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Norm = Literal["rms", "layer"]
Positions = Literal["rope", "learned"]
Mlp = Literal["swiglu", "reglu", "gelu", "gelu_tanh", "relu", "relu2"]
Tokens = Literal["bpe", "chars", "bytes", "gpt2", "folder"]
Stages = Literal["pretrain", "sft", "dpo", "reward", "grpo", "ppo", "distill"]
Sinks = Literal["tensorboard", "wandb", "swanlab", "trackio"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "float64"]
GATED: tuple[str, ...] = ("swiglu", "reglu")
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the Transformer. The default is Qwen3's."""

    vocab_size: int = 0  # Rows of the embedding table; derived: the tokenizer's size
    d_model: int = 256  # Width of the residual stream
    n_layers: int = 4  # Blocks
    n_heads: int = 4  # Query heads
    n_kv_heads: int = 0  # Key-value heads; derived: as many as n_heads
    head_dim: int = 0  # Width of one head; derived: d_model / n_heads
    d_ff: int = 0  # Width of the MLP; derived: 8/3 d_model if gated, else 4 d_model
    max_seq_len: int = 256  # Longest context, in tokens
    norm: Norm = "rms"  # RMSNorm or LayerNorm
    positions: Positions = "rope"  # Rotary or learned absolute positions
    mlp: Mlp = "swiglu"  # swiglu and reglu are gated; gelu is exact, gelu_tanh is GPT-2's
    qk_norm: bool = True  # RMSNorm over each query and key head before rotation
    bias: bool = False  # Biases in linear layers and LayerNorm
    tie_embeddings: bool = True  # One table for embedding and head
    head_bias: bool = False  # A bias for each entry of the vocabulary; only without tie_embeddings
    rope_theta: float = 10000.0  # Base of the rotary frequencies
    norm_eps: float = 1e-6  # Added to the variance in every norm
    dropout: float = 0.0  # On embeddings, attention weights and each residual branch
    n_experts: int = 0  # MLPs of width d_ff for a router to choose from in every block; 0: one
    experts_per_token: int = 2  # How many of them each token goes through
    norm_topk_prob: bool = True  # Scale their weights to add up to 1 (one expert then has weight 1)
    balance_weight: float = 0.001  # Of the experts' balance in the loss


@dataclass(frozen=True)
class TokenizerConfig:
    """Where the vocabulary comes from. A prepared dataset brings its own."""

    kind: Tokens = "bpe"  # bpe and chars learn from the data
    path: str = ""  # folder: a Hugging Face tokenizer; gpt2: its files or a tiktoken cache
    vocab_size: int = 6400  # bpe: entries, special tokens included
    pattern: Literal["qwen2", "gpt2"] = "qwen2"  # bpe: how text is cut before merging
    character_budget: int = 200_000_000  # bpe: how much text is looked at, evenly over the input


@dataclass(frozen=True)
class MixConfig:
    """One source of a mixture: a table of its own, `[[data.mix]]`."""

    path: tuple[str, ...] = ()  # As data.path
    weight: float = 1.0  # Its share of the rows, beside the other sources' weights
    name: str = ""  # In logs; derived: the first path's own name
    text_key: str = ""  # Key of the text in a JSON row; derived: data.text_key


@dataclass(frozen=True)
class CleanConfig:
    """What is removed from text before it is split and encoded; nothing unless asked for."""

    dedup: Literal["", "exact", "near"] = ""  # Later copies; near: what resembles an earlier text
    near_threshold: float = 0.8  # near: share of common 5-character pieces from which it goes
    min_chars: int = 0  # Shorter documents go
    max_chars: int = 0  # Longer documents go; 0: none
    languages: tuple[str, ...] = ()  # Others go: zh, en, ja, ko, ru, ar …; empty: all stay


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    path: tuple[str, ...] = ()  # Files, folders, globs, hf:owner/name; one prepared dataset
    mirror: str = ""  # Another address of the hub that hf: or modelscope: names, https://HOST
    kind: Literal["auto", "text", "chats"] = "auto"  # auto: what the stage trains on
    text_key: str = "text"  # Key of the text in a JSON row, or its column in a table
    encoding: str = "utf-8"  # Of plain text and .csv files
    document_separator: str = ""  # A string that parts documents inside a plain file
    split: Literal["hash", "tail"] = "hash"  # By document hash, or the last part by position
    val_fraction: float = 0.1  # Share held out
    skip_bad: bool = False  # Count and list bad rows instead of stopping
    document_mask: bool = False  # Attention and positions restart at every document
    token_dtype: Literal["uint16", "uint32"] = "uint16"  # Of a headerless train.bin
    workers: int = 0  # Processes that prepare text; 0: one per core
    mix: tuple[MixConfig, ...] = ()  # Several sources by weight, instead of data.path
    clean: CleanConfig = field(default_factory=CleanConfig)  # What is removed
    replay: tuple[str, ...] = ()  # sft: text of pretraining to mix in, against forgetting
    replay_share: float = 0.1  # sft: of the rows that are replayed text


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and on what."""

    length: str = "1000 steps"  # "2000 steps", "1 epoch", "300M tokens" or "3 minutes"
    seq_len: int = 0  # Tokens in a row; derived: model.max_seq_len
    batch_tokens: int = 16384  # Tokens per step over all devices and micro-steps
    micro_batch_size: int = 0  # Rows per forward pass per device; derived from memory
    seed: int = 1337  # Of weights, data order and dropout
    device: str = "auto"  # auto, cpu, cuda or mps
    precision: Precision = "auto"  # Of matrix products
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile where it pays
    activation_checkpointing: bool = False  # Less memory for a third more time
    max_bad_steps: int = 10  # Non-finite steps in a row that end the run


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["muon", "adamw"] = "muon"  # Muon for matrices, AdamW for the rest; or AdamW
    lr: float = 3e-3  # Peak learning rate of AdamW
    muon_lr: float = 0.02  # Peak learning rate of Muon
    beta1: float = 0.9  # AdamW's first moment
    beta2: float = 0.95  # AdamW's second moment
    eps: float = 1e-8  # AdamW's epsilon
    momentum: float = 0.95  # Muon's momentum
    weight_decay: float = 0.1  # On matrices; never on norms and biases
    clip_norm: float = 1.0  # Largest gradient norm; 0: none
    schedule: Literal["cosine", "wsd"] = "cosine"  # Cosine, or stable with a linear cooldown
    warmup_steps: int = 100  # Steps of linear warm-up
    cooldown: float = 0.3  # wsd: share of the run that cools down
    floor: float = 0.1  # Final learning rate as a share of the peak


@dataclass(frozen=True)
class EvalConfig:
    """How the held-out split is measured."""

    every: str = "250 steps"  # "250 steps" or "20 seconds"; the last step is always measured
    windows: int = 0  # Rows measured, evenly over the split; 0: the whole split
    whole_at_end: bool = False  # Measure the whole split after the last step, whatever `windows` is
    overlap: float = 0.0  # Of that: share of each window that is context alone; 0: side by side
    micro_batch_size: int = 0  # Rows per forward pass; derived: that of training


@dataclass(frozen=True)
class SamplesConfig:
    """What the model writes while it trains."""

    every: str = "500 steps"  # "500 steps" or "30 seconds"; "" for never
    prompts: tuple[str, ...] = ("",)  # One sample for each
    max_tokens: int = 120  # Longest sample
    temperature: float = 0.8  # 0 is greedy
    top_k: int = 50  # Keep the k likeliest tokens; 0: all


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept."""

    every: str = "500 steps"  # "500 steps" or "60 seconds"; the last step is always kept
    keep_last: int = 2  # The newest K, besides the best


@dataclass(frozen=True)
class ReportConfig:
    """Who else is told how a run goes."""

    sinks: tuple[Sinks, ...] = ()  # Trackers that get every row too; offline, see docs/watching.md


@dataclass(frozen=True)
class InitConfig:
    """Where the weights start."""

    from_: str = ""  # A run whose weights to start from; empty: random


@dataclass(frozen=True)
class LoraConfig:
    """Train small low-rank changes beside frozen weights (Hu et al. 2021)."""

    rank: int = 0  # Of every change; 0: all weights are trained
    alpha: float = 16.0  # The change is scaled by alpha / rank
    dropout: float = 0.0  # On what goes into the change
    targets: tuple[str, ...] = LORA_TARGETS  # Layers of every block that get one


@dataclass(frozen=True)
class PreferenceConfig:
    """What stage dpo minimizes."""

    loss: Literal["sigmoid", "ipo", "orpo", "simpo", "kto"] = "sigmoid"  # sigmoid is DPO's own
    beta: float = 0.1  # Strength of the pull to the reference; simpo: scale of the margin
    label_smoothing: float = 0.0  # sigmoid: share of the pairs taken to be the wrong way round
    margin: float = 0.5  # simpo: by how much a chosen answer should be ahead (gamma)
    desirable_weight: float = 1.0  # kto: of completions that are wanted
    undesirable_weight: float = 1.0  # kto: of those that are not


@dataclass(frozen=True)
class RolloutConfig:
    """What stages grpo and ppo write, and how it is judged."""

    prompts: int = 8  # Prompts that a rollout answers, over all ranks
    group_size: int = 8  # Completions of each prompt
    steps: int = 1  # Updates from one rollout
    max_tokens: int = 64  # Longest completion
    temperature: float = 1.0  # Of the policy that writes; the log-probabilities are at 1
    top_k: int = 0  # Keep the k likeliest tokens; 0: all
    rewards: tuple[str, ...] = ("exact_match",)  # Names, or file.py:function; added up
    weights: tuple[float, ...] = ()  # Of the rewards; empty: 1 each
    reward_model: str = ""  # A run of stage reward, whose score is added
    reward_timeout: float = 5.0  # Seconds that one call of a reward may take
    reward_workers: int = 1  # Processes that judge
    on_fault: Literal["zero", "stop"] = "stop"  # A reward that raises, hangs or is no number
    tools: tuple[str, ...] = ()  # Tools that a completion may call: calculator
    max_calls: int = 4  # Tool calls in one completion
    eval_prompts: int = 64  # Held-out prompts that are answered greedily at each measurement
    system: str = ""  # A system turn before every prompt
    chat: bool = True  # Prompts are user turns; false: plain text to continue


@dataclass(frozen=True)
class PolicyConfig:
    """What stages grpo and ppo minimize."""

    loss: Literal["grpo", "dr_grpo", "cispo"] = "grpo"  # grpo: how ratios and lengths count
    clip: float = 0.2  # How far a ratio may leave 1 before its gradient ends
    clip_high: float = 0.0  # The same above 1; 0: clip
    kl_weight: float = 0.0  # Of the k3 estimate of the divergence from the reference
    entropy_weight: float = 0.0  # ppo: of the bonus for keeping choices open
    value_weight: float = 0.5  # ppo: of the value head's squared error
    value_clip: float = 0.2  # ppo: how far a value may move in one update; 0: any
    discount: float = 1.0  # ppo: gamma of the returns
    gae_lambda: float = 0.95  # ppo: lambda of generalized advantage estimation


@dataclass(frozen=True)
class DistillConfig:
    """What stage distill minimizes."""

    teacher: str = ""  # A run with the same vocabulary
    loss: Literal["forward_kl", "reverse_kl"] = "forward_kl"  # KL(teacher || student), or back
    temperature: float = 1.0  # Divides both sides' logits; the loss is scaled by its square
    weight: float = 0.5  # Of the divergence; the rest is next-token cross-entropy


@dataclass(frozen=True)
class Recipe:
    """One file, one run."""

    stage: Stages = "pretrain"  # Which stream and which objective
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    init: InitConfig = field(default_factory=InitConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

"""Parameters, operations and memory of a shape, by arithmetic alone.

D the model's width, F the MLP's, V the vocabulary, N query heads, K key-value heads, H the width
of a head, T positions of a row.
"""

from __future__ import annotations

from typing import NamedTuple

from sparrowlm.config import LoraConfig, ModelConfig, lora_targets
from sparrowlm.config.schema import GATED
from sparrowlm.model.attention import block_size
from sparrowlm.model.head import CHUNK_BYTES


class Parameters(NamedTuple):
    """How many numbers each part holds; a tied table counts once, as the embedding."""

    embedding: int
    positions: int
    attention: int
    mlp: int
    norms: int
    head: int
    router: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    @property
    def matrices(self) -> int:
        """Those inside the blocks that Muon steps."""
        return self.attention + self.mlp + self.router


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of a resolved shape; those of all experts count.

    >>> minimind = ModelConfig(6400, 512, 8, 16, 8, d_ff=1408, max_seq_len=512, qk_norm=False)
    >>> count_parameters(resolve_model(minimind)).total
    26878464
    """
    width, layers = config.d_model, config.n_layers
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention = width * queries + 2 * width * keys + queries * width
    mlp = (3 if config.mlp in GATED else 2) * width * config.d_ff
    if config.bias:
        attention += queries + 2 * keys + width
        mlp += (2 if config.mlp in GATED else 1) * config.d_ff + width
    norm = width * (2 if config.norm == "layer" and config.bias else 1)
    heads = 2 * config.head_dim if config.qk_norm else 0
    return Parameters(
        embedding=config.vocab_size * width,
        positions=config.max_seq_len * width if config.positions == "learned" else 0,
        attention=layers * attention,
        mlp=layers * mlp * max(1, config.n_experts),
        norms=layers * (2 * norm + heads) + norm,
        head=0 if config.tie_embeddings else config.vocab_size * (width + config.head_bias),
        router=layers * width * config.n_experts,
    )


def active_parameters(config: ModelConfig) -> Parameters:
    """The parameters that a token goes through: of the experts, those it is routed to.

    >>> minimind = ModelConfig(6400, 768, 8, 8, 4, d_ff=2432, n_experts=4, experts_per_token=1)
    >>> active_parameters(resolve_model(minimind)).total
    63936768
    """
    counted = count_parameters(config)
    if not config.n_experts:
        return counted
    return counted._replace(mlp=counted.mlp // config.n_experts * config.experts_per_token)


def lora_parameters(config: ModelConfig, lora: LoraConfig) -> int:
    """The numbers that low-rank changes of a resolved shape hold; 0 without a rank.

    >>> minimind = ModelConfig(6400, 512, 8, 16, 8, d_ff=1408, max_seq_len=512, qk_norm=False)
    >>> lora_parameters(resolve_model(minimind), LoraConfig(rank=8, targets=("q", "v")))
    114688
    """
    if not lora.rank:
        return 0
    width, inner = config.d_model, config.d_ff
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    sides = {"q": width + queries, "k": width + keys, "v": width + keys, "o": queries + width}
    sides |= dict.fromkeys(("gate", "up", "down"), width + inner)
    chosen = lora_targets(lora, config)
    return config.n_layers * lora.rank * sum(sides[name] for name in chosen)


def flops_per_token(config: ModelConfig, seq_len: int, lora: LoraConfig | None = None) -> float:
    """Floating-point operations of a training step for each token: forward, and twice that
    backward (Chowdhery et al. 2022, appendix B).

    A weight costs two operations forward, the head's too, tied or not; looking a row up costs
    none. Of experts the chosen ones count. Attention is counted where it is causal: half of the
    T x T products. A weight that is frozen beside low-rank changes has no gradient of its own and
    costs four operations instead of six.
    """
    weights = active_parameters(config).matrices + config.vocab_size * config.d_model
    queries = config.n_heads * config.head_dim
    scores = config.n_layers * 2 * queries * seq_len / 2  # products, of scores and of values
    changes = lora_parameters(config, lora) if lora is not None else 0
    return (4 if changes else 6) * weights + 6 * (scores + changes)


class Memory(NamedTuple):
    """Bytes that training holds on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    frozen: int = 0
    """Models that are only asked: a teacher, a reference, a judge (`train.plan`)."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def training_memory(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    *,
    optimizer: str,
    weight_bytes: int = 4,
    product_bytes: int = 4,
    checkpointing: bool = False,
    device: str = "cuda",
    lora: LoraConfig | None = None,
) -> Memory:
    """What a step holds at its peak, without the allocator's own waste.

    Args:
        config: a resolved shape.
        rows: of a micro-batch.
        seq_len: tokens in a row.
        optimizer: "adamw" keeps two numbers for each weight, "muon" one for those in the blocks.
        weight_bytes: of a weight, its gradient and its optimizer state.
        product_bytes: of an activation: 2 under autocast.
        checkpointing: only the input of each block is kept.
        device: its type; on a CPU attention may keep its weights (`model.attention`).
        lora: with a rank, only such changes have gradients and optimizer state (AdamW's).
    """
    counted = count_parameters(config)
    changes = lora_parameters(config, lora) if lora is not None else 0
    trained = changes or counted.total
    states = 2 * trained - (counted.matrices if optimizer == "muon" and not changes else 0)
    tokens, layer = rows * seq_len, layer_activations(config, seq_len, device, product_bytes)
    if lora is not None and changes:
        layer += _lora_activations(config, lora)
    kept = config.n_layers * config.d_model + layer if checkpointing else config.n_layers * layer
    # Under autocast every matrix has a narrow copy from its product until the backward pass.
    copies = product_bytes * counted.matrices if product_bytes < weight_bytes else 0
    return Memory(
        weights=weight_bytes * (counted.total + changes),
        gradients=weight_bytes * trained,
        optimizer=weight_bytes * states,
        activations=product_bytes * tokens * (kept + 2 * config.d_model) + copies,
        # A chunk's logits and probabilities, and the gradients that wait for the backward pass.
        head=2 * min(CHUNK_BYTES, 4 * tokens * config.vocab_size)
        + weight_bytes * config.d_model * (tokens + (0 if changes else config.vocab_size)),
    )


def _lora_activations(config: ModelConfig, lora: LoraConfig) -> int:
    """Numbers that the changes of a block keep of each token: what goes into B and, where there
    is dropout, into A. Without it, what goes into A goes into the frozen product too. (That one
    keeps nothing, so a block with few changes keeps less than is counted here.)"""
    names = lora_targets(lora, config)
    queries = config.n_heads * config.head_dim
    entering = {"o": queries, "down": config.d_ff}
    dropped = sum(entering.get(name, config.d_model) for name in names) if lora.dropout else 0
    return lora.rank * len(names) + dropped


def layer_activations(
    config: ModelConfig, seq_len: int, device: str = "cuda", itemsize: int = 4
) -> int:
    """Numbers that a block keeps of each token for its backward pass.

    A norm keeps what came in and, as the next product's input, what went out; a rotation keeps
    nothing; attention keeps its queries, keys, values and result. A test holds this to what
    autograd is seen to keep.
    """
    width, inner = config.d_model, config.d_ff
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    norms = 2 * 2 * width
    attention = (queries + keys) * (3 if config.qk_norm else 2)
    # gate, its bend, up and their product; or up and its bend.
    mlp = inner * {"swiglu": 4, "reglu": 3, "relu": 1}.get(config.mlp, 2)
    if config.n_experts:
        # A token's copies on their way in and back; the odds, and what the balance keeps.
        mlp = config.experts_per_token * (mlp + 2 * width) + 4 * config.n_experts
    masks = 2 * width if config.dropout else 0
    if size := block_size(device, seq_len, itemsize, config.dropout):
        weights = config.n_heads * (seq_len + min(size, seq_len)) // 2  # up to the diagonal
        attention += weights
        masks += weights if config.dropout else 0
    elif config.dropout and device not in ("cpu", "cuda"):  # no fused kernel knows dropout there
        attention += 3 * config.n_heads * seq_len
    return norms + attention + mlp + masks // itemsize  # of a mask, a byte each

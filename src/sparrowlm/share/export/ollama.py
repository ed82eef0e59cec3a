"""A GGUF file with the Modelfile that Ollama makes a model of it by.

Ollama's templates are Go's. This one writes what `text.chat` writes for system, user and assistant
turns with an empty thought; it knows no tools, and lets no model think that was not asked to.
"""

from __future__ import annotations

from sparrowlm.share.export.source import Source
from sparrowlm.text.chat import END, NO_THOUGHT, START, ChatFormat, parts_of, prompt_part

# `{{-` and `-}}` take the white space beside them away. Where the last message is the assistant's,
# Ollama wants it continued, so it is left open.
CHAT = (
    "{{- range $i, $_ := .Messages }}\n"
    "{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n"
    '{{- if eq .Role "assistant" -}}\n'
    f"{START}assistant\n{NO_THOUGHT}{{{{ .Content }}}}{{{{ if not $last }}}}{END}\n"
    "{{ end }}\n"
    "{{- else -}}\n"
    f"{START}{{{{ .Role }}}}\n{{{{ .Content }}}}{END}\n"
    "{{ end }}\n"
    '{{- if and $last (ne .Role "assistant") -}}\n'
    f"{START}assistant\n{NO_THOUGHT}{{{{ end }}}}\n"
    "{{- end }}"
)
CONTINUE = "{{ .Prompt }}"


def ollama_faults(source: Source) -> list[str]:
    """What a Modelfile could not say."""
    if source.answers and source.chat is not None and not writes_ours(source.chat):
        return ["the tokenizer's chat_template, which is not Sparrow's (write one for Ollama)"]
    return []


def writes_ours(chat: ChatFormat) -> bool:
    """Whether a tokenizer's template writes plain turns as ours does."""
    turns = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    ours = "".join(part.text for part in [*parts_of(turns), prompt_part(False)])
    return chat.tokenizer.decode(chat.prompt_ids(turns), specials=True) == ours


def modelfile(source: Source, weights: str, license: str) -> str:
    """The Modelfile.

    Args:
        source: what leaves.
        weights: name of the GGUF file beside it.
        license: as a person told it; empty where nobody did.
    """
    names = {number: name for name, number in source.tokenizer.special_ids.items()}
    settings: list[tuple[str, object]] = [
        ("num_ctx", source.config.max_seq_len),
        ("temperature", source.samples.temperature),
        ("top_k", source.samples.top_k),
        ("top_p", 1),  # Ollama's own, 0.9, and its penalty would change what the model writes
        ("repeat_penalty", 1),
        *(("stop", f'"{names[end]}"') for end in source.ends),
    ]
    template = CHAT if source.answers else CONTINUE
    return "\n".join(
        [
            f"FROM ./{weights}",
            f'TEMPLATE """{template}"""',
            *(f"PARAMETER {name} {value}" for name, value in settings),
            *([f'LICENSE """{license}"""'] if license else []),
            "",
        ]
    )

"""`sparrow export`: a run is written in a form that others read, and read back before it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from sparrowlm import files
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.report.picture import draw_loss
from sparrowlm.report.read import read_run
from sparrowlm.share.export import gguf as gguf_file
from sparrowlm.share.export import hf
from sparrowlm.share.export.card import Facts, card
from sparrowlm.share.export.check import check_hf, logits_of, probe
from sparrowlm.share.export.ollama import modelfile, ollama_faults
from sparrowlm.share.export.shapes import TITLES, standard_name
from sparrowlm.share.export.source import Source, read_source
from sparrowlm.text.extras import need

Format = Literal["hf", "gguf", "ollama"]
Said = Callable[[str], None]
CARD, PICTURE, MODELFILE = "README.md", "loss.png", "Modelfile"
# A dtype has two spellings, and either is understood.
SPELLINGS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}


class Exported(NamedTuple):
    """What an export did."""

    out: Path
    title: str
    """Of the shape: Qwen3."""
    dtype: str
    files: list[tuple[str, int]]
    """Names and bytes, in order."""
    checks: list[str]
    """What was compared, in sentences."""
    notes: list[str]
    """What a person should hear of."""


def export(
    run: Path,
    to: Format,
    out: Path,
    *,
    dtype: str = "",
    adapter: Path | None = None,
    license: str = "",
    known_as: str = "",
    say: Said = lambda _: None,
) -> Exported:
    """Write a run as a Hugging Face folder, a GGUF file, or that with Ollama's Modelfile.

    Everything is written under a temporary name, read back and compared; only then does `out`
    appear.

    Args:
        run: a run folder, taken at its best step, or a checkpoint.
        to: the form.
        out: a folder that is not there yet.
        dtype: of the weights, in PyTorch's spelling or in llama.cpp's; "" takes float32 for
            Hugging Face and F16 for GGUF.
        adapter: changes to merge into the weights first, as of `share.adapters.read_adapter`.
        license: of the weights, for the model card; "" says that it is unknown.
        known_as: what the model card calls it in its examples; "" takes the name of `out`.
        say: told what happens.

    Raises:
        ConfigError: a dtype that the form lacks, or a license of several lines.
        RunError: no run there, `out` is there, a shape or a tokenizer that the form cannot
            express (every fault at once), or an export that does not compute what the run does.
        DataError: the package that writes the form is not installed.
    """
    if out.exists():
        raise RunError("exists already", where=str(out), fix="choose another --out or remove it")
    if "\n" in license or '"""' in license:
        raise ConfigError("is one name, such as apache-2.0", where="--license")
    form = dtype_of(to, dtype)
    if to != "hf":
        need("gguf", "gguf", f"--to {to}")
    source = read_source(run, adapter)
    kind = _named(source, to, run)
    with files.publish(out) as work:
        say(f"writing {TITLES[kind]} in {form}")
        if to == "hf":
            checks, notes = _write_hf(work, source, kind, form, say)
        else:
            checks, notes = _write_gguf(work, source, kind, form, license, to)
        facts = Facts(
            title=TITLES[kind],
            dtype=form,
            license=license,
            use=_use(work, source, to, known_as or out.name),
            library="transformers" if to == "hf" else "gguf",
            picture=_draw(work, source),
        )
        files.write_text(work / CARD, card(source, facts))
        written = sorted((path.name, path.stat().st_size) for path in work.iterdir())
    return Exported(out, TITLES[kind], form, written, checks, notes)


def dtype_of(to: Format, asked: str) -> str:
    """The dtype in the spelling of a form.

    >>> dtype_of("gguf", "bfloat16"), dtype_of("hf", "F16"), dtype_of("hf", "")
    ('BF16', 'float16', 'float32')

    Raises:
        ConfigError: no such dtype, or not in this form.
    """
    known = tuple(hf.DTYPES) if to == "hf" else gguf_file.DTYPES
    if not asked:
        return "float32" if to == "hf" else "F16"
    table = {**SPELLINGS, **{theirs.lower(): theirs for theirs in SPELLINGS.values()}}
    there = table.get(asked.lower(), asked)
    ours = {theirs: ours for ours, theirs in SPELLINGS.items()}.get(there, there)
    found = ours if to == "hf" else there
    if found not in known:
        raise ConfigError(
            f"{asked} is no dtype of --to {to}", where="--dtype", fix=f"one of {', '.join(known)}"
        )
    return found


def _named(source: Source, to: Format, run: Path) -> str:
    """The `model_type` of a shape that the form can express.

    Raises:
        RunError: every setting that keeps it from that.
    """
    kind, faults = standard_name(source.config, None if to == "hf" else gguf_file.LIMITS)
    if to != "hf":
        faults += gguf_file.tokenizer_faults(source.tokenizer)
    if to == "ollama":
        faults += ollama_faults(source)
    if faults:
        raise RunError(
            f"cannot be written as {to}: {'; '.join(faults)}",
            where=str(run),
            why="what reads that form has no setting for it, and would compute something else",
            fix="train with settings that it has (the defaults are Qwen3's); the run itself stays"
            " usable with sparrow chat, serve and generate",
        )
    return kind


def _write_hf(
    work: Path, source: Source, kind: str, dtype: str, say: Said
) -> tuple[list[str], list[str]]:
    written = source if dtype == "float32" else source.holding(hf.rounded(source.weights, dtype))
    hf.write_hf(work, written, kind, dtype)
    say("loading it back")
    checks = [check_hf(work, written, kind)]
    if dtype != "float32":
        ids = probe(source.config)
        before = logits_of(source.config, source.weights, ids)
        moved = (logits_of(source.config, written.weights, ids) - before).abs().max().item()
        checks.append(f"rounding to {dtype} itself moves logits by at most {moved:.2g}")
    notes = []
    if kind == "gpt2" and not source.config.bias:
        notes.append("GPT-2 has biases, and this model has none: zeros stand for them")
    return checks, notes


def _write_gguf(
    work: Path, source: Source, kind: str, dtype: str, license: str, to: Format
) -> tuple[list[str], list[str]]:
    if dtype in ("F16", "Q8_0"):
        hf.rounded(source.weights, "float16")  # a scale of Q8_0 is one, too
    path = work / f"{source.name}-{dtype}.gguf"
    notes = gguf_file.write_gguf(path, source, kind, dtype, license)
    checks = [gguf_file.check_gguf(path, source, kind, dtype)]
    if to == "ollama":
        files.write_text(work / MODELFILE, modelfile(source, path.name, license))
        kept = "its turns are those of a chat" if source.answers else "it continues text"
        notes.append(f"Modelfile: {kept}; Ollama's template knows neither tools nor thinking")
    return checks, notes


def _draw(work: Path, source: Source) -> bool:
    """The curve of the run, where there is one."""
    run = read_run(source.origins[0].run.path)
    if not run.train:
        return False
    files.write_bytes(work / PICTURE, draw_loss(run))
    return True


def _use(work: Path, source: Source, to: Format, name: str) -> str:
    """How to use the files, for the card."""
    if to == "ollama":
        return f"```\nollama create {name} -f {MODELFILE}\nollama run {name}\n```"
    if to == "gguf":
        file = next(work.glob("*.gguf")).name
        talk = "" if source.answers else ' -no-cnv -p "Once upon a time"'
        return f"With llama.cpp:\n\n```\nllama-cli -m {file}{talk}\n```"
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    ]
    if source.answers:
        lines += [
            'turns = [{"role": "user", "content": "What is a sparrow?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines.append('inputs = tokenizer("Once upon a time", return_tensors="pt")')
    lines += [
        "written = model.generate(**inputs, max_new_tokens=100)",
        'print(tokenizer.decode(written[0, inputs["input_ids"].shape[1]:]))',
    ]
    code = "\n".join(lines)
    return f"Where this folder is `{name}`:\n\n```python\n{code}\n```"

"""Imports against the real code of the projects they come from.

    python benchmarks/import.py --peer ../nanoGPT --kind nanogpt

The project's own module, in a process of its own, makes a small model with random weights, saves
it as that project does, and writes down its logits and 24 greedy tokens. `sparrow import` reads
the file, and Sparrow's model and engine answer the same. Nothing in the checkout is changed.

Prints one JSON line: the largest difference of a logit, in float32, beside the spread of the
logits, and whether the tokens agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sparrowlm.checkpoint import find_run
from sparrowlm.errors import SparrowError
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import detect
from sparrowlm.share.adopt import adopt

PROMPT, TOKENS = 12, 24

# Each runs in the project's checkout, leaves `file`, and defines `logits(ids)`.
MAKE = {
    "nanogpt": """
from model import GPT, GPTConfig
arguments = dict(n_layer=3, n_head=4, n_embd=64, block_size=64, bias=BIAS, vocab_size=97,
                 dropout=0.0)
model = stirred(GPT(GPTConfig(**arguments)))
state = {"_orig_mod." + name: value for name, value in model.state_dict().items()}
optimizer = torch.optim.AdamW(model.parameters())
torch.save({"model": state, "optimizer": optimizer.state_dict(), "model_args": arguments,
            "iter_num": 250, "best_val_loss": torch.tensor(1.5), "config": arguments},
           folder / "ckpt.pt")
file = "ckpt.pt"
logits = lambda ids: model(ids, ids)[0]
""",
    "minimind": """
from model.model_minimind import MiniMindConfig, MiniMindForCausalLM
shape = MiniMindConfig(hidden_size=64, num_hidden_layers=3, vocab_size=97, use_moe=MOE)
model = stirred(MiniMindForCausalLM(shape))
torch.save(model.state_dict(), folder / "pretrain_64.pth")
file = "pretrain_64.pth"
logits = lambda ids: model(ids).logits
""",
    "llama2c": """
from export import model_export
from model import ModelArgs, Transformer
model = stirred(Transformer(ModelArgs(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=97,
                                      max_seq_len=64)))
file = "model.bin"
model_export(model, str(folder / file), version=VERSION)
logits = lambda ids: model(ids, ids)
""",
    "pile": """
from src.models.transformer import Transformer
model = stirred(Transformer(n_head=4, n_embed=64, context_length=64, vocab_size=97, N_BLOCKS=3))
optimizer = torch.optim.AdamW(model.parameters())
torch.save({"model_state_dict": model.state_dict(), "losses": [1.0],
            "optimizer_state_dict": optimizer.state_dict()}, folder / "transformer_B.pt")
file = "transformer_B.pt"
logits = lambda ids: model(ids)[0]
""",
}
# Other forms of the same project: name, what is put in for the capitals above.
FORMS = {
    "nanogpt": [("with biases", "True"), ("without biases", "False")],
    "minimind": [("dense", "False"), ("experts", "True")],
    "llama2c": [("version 0", "0"), ("version 1", "1")],
    "pile": [("as it stands", "")],
}
BEFORE = """
import json, pathlib, sys
import torch
sys.path.insert(0, ".")
sys.argv, folder = sys.argv[:1], pathlib.Path(sys.argv[1])
torch.manual_seed(1)

def stirred(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()
"""
AFTER = f"""
ids = torch.randint(0, 97, (1, {PROMPT}))
with torch.no_grad():
    first, written = logits(ids)[0], ids
    for _ in range({TOKENS}):
        written = torch.cat([written, logits(written)[:, -1:].argmax(-1)], 1)
answer = {{"file": file, "ids": ids[0].tolist(), "logits": first.tolist(),
          "written": written[0, {PROMPT}:].tolist()}}
(folder / "answer.json").write_text(json.dumps(answer))
"""


def main() -> None:
    """Compare, and print a JSON line for each form."""
    parser = argparse.ArgumentParser(description="Imports against the projects' own code.")
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of the project")
    parser.add_argument("--kind", choices=MAKE, required=True)
    options = parser.parse_args()
    for form, value in FORMS[options.kind]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = compare(options.peer, options.kind, value, Path(folder))
            except SparrowError as fault:
                result = {"refused": fault.what}
        print(json.dumps({"kind": options.kind, "form": form, **result}))


def compare(peer: Path, kind: str, value: str, folder: Path) -> dict[str, object]:
    """One form of a project: its answer beside ours."""
    make = MAKE[kind]
    for capital in ("BIAS", "MOE", "VERSION"):
        make = make.replace(capital, value)
    subprocess.run(
        [sys.executable, "-B", "-c", BEFORE + make + AFTER, str(folder)],
        cwd=peer,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    done = adopt(folder / answer["file"], folder / "run")
    run, step = find_run(folder / "run")
    model = Transformer(run.recipe().model).eval()
    model.load_state_dict(run.load(step).model)
    want = torch.tensor(answer["logits"])
    with torch.no_grad():
        got = model.logits(model(torch.tensor([answer["ids"]])).hidden)[0, -len(want) :]
    engine = Engine(model, None, detect("cpu", "float32"))
    sampling = Sampling(temperature=0.0, max_tokens=TOKENS)
    pieces = engine.stream([Request(answer["ids"], sampling)])
    return {
        "recognized": done.project,
        "largest_difference": (got - want).abs().max().item(),
        "spread_of_logits": want.std().item(),
        "greedy_tokens_agree": [piece.token for piece in pieces] == answer["written"],
        "tokens": TOKENS,
    }


if __name__ == "__main__":
    main()

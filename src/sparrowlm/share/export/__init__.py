"""Taking a run to the tools that people already use.

source.py    what leaves: shape, weights with adapters merged, tokenizer
shapes.py    the name a shape has elsewhere, or what stands in its way
hf.py        a folder for transformers, vLLM and whatever reads their files
gguf.py      one file for llama.cpp and its kin
ollama.py    that file with a Modelfile
card.py      the model card, made from the run
check.py     an export, loaded back and compared
writing.py   `export`: one table of formats
"""

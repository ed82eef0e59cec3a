"""Corpora that are known by a name: where they are, how large, under which license.

What a card says of its license is repeated here, not judged. Where it forbids a use, or says less
than a user would need to know, `clear` is false, and nothing is downloaded before the user has
said that it may be.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sparrowlm.errors import ConfigError


@dataclass(frozen=True)
class KnownCorpus:
    """A corpus on a hub (`hub` and `patterns`) or at an address (`url`)."""

    name: str
    about: str
    license: str
    clear: bool
    """Whether the license allows any use, commercial ones too, and leaves no doubt about it."""
    size: float
    """Bytes, about. What the server says counts."""
    hub: str = ""
    """The id of a dataset on the Hugging Face hub."""
    patterns: tuple[str, ...] = ()
    """Which of its files, in this order; sorted within a pattern."""
    url: str = ""
    file: str = ""
    """The name of what is at `url`."""
    sha256: str = ""
    mirror: str = ""
    """Where else it is, for a person to go to."""

    @property
    def card(self) -> str:
        """Where the license can be read."""
        return f"https://huggingface.co/datasets/{self.hub}" if self.hub else self.url


_ALL = (
    KnownCorpus(
        name="tinyshakespeare",
        about="all of nanoGPT's shakespeare_char, one text",
        license="public domain",
        clear=True,
        size=1_115_394,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    KnownCorpus(
        name="tinystories",
        about="children's stories by GPT-4, English; a line of <|endoftext|> between",
        license="CDLA-Sharing-1.0",
        clear=True,
        size=2.25e9,
        hub="roneneldan/TinyStories",
        patterns=("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
    ),
    KnownCorpus(
        name="minimind-pretrain",
        about="minimind-3's small pretraining set, Chinese and English; key text",
        license="its card said Apache-2.0; gathered from sets with licenses of their own",
        clear=False,
        size=1.2e9,
        hub="jingyaogong/minimind_dataset",
        patterns=("pretrain_t2t_mini.jsonl",),
        mirror="modelscope.cn/datasets/gongjy/minimind_dataset",
    ),
    KnownCorpus(
        name="minimind-sft",
        about="minimind-3's small chat set, Chinese and English; key conversations",
        license="its card said Apache-2.0; gathered from sets with licenses of their own",
        clear=False,
        size=1.6e9,
        hub="jingyaogong/minimind_dataset",
        patterns=("sft_t2t_mini.jsonl",),
        mirror="modelscope.cn/datasets/gongjy/minimind_dataset",
    ),
    KnownCorpus(
        name="fineweb-edu",
        about="educational web pages, English: the sample of 10 billion tokens",
        license="ODC-By 1.0; Common Crawl's terms of use apply too",
        clear=True,
        size=28.5e9,
        hub="HuggingFaceFW/fineweb-edu",
        patterns=("sample/10BT/*.parquet",),
    ),
    KnownCorpus(
        name="fineweb-edu-chinese",
        about="educational web pages, Chinese, V2.1: those of score 4 to 5",
        license="tagged Apache-2.0; OpenCSG's license asks for permission for commercial use",
        clear=False,
        size=70e9,
        hub="opencsg/Fineweb-Edu-Chinese-V2.1",
        patterns=("4_5/*.parquet",),
        mirror="modelscope.cn/datasets/opencsg/Fineweb-Edu-Chinese-V2.2 (a later version)",
    ),
    KnownCorpus(
        name="pile-uncopyrighted",
        about="The Pile without Books3 and four more parts; 338 MB held out, then 30 files",
        license='"other": the card names none, and every part has its own',
        clear=False,
        size=335e9,  # what is held out is a thousandth
        hub="monology/pile-uncopyrighted",
        patterns=("val.jsonl.zst", "train/*.jsonl.zst"),
    ),
)
CORPORA: Mapping[str, KnownCorpus] = MappingProxyType({corpus.name: corpus for corpus in _ALL})


def find_corpus(name: str) -> KnownCorpus:
    """A corpus by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in CORPORA:
        return CORPORA[name]
    close = difflib.get_close_matches(name, CORPORA, n=1)
    raise ConfigError(
        f"{name!r} is no corpus known by name",
        fix=f"did you mean {close[0]}?" if close else "sparrow data list shows them",
    )

"""Datasets on a hub, fetched file by file: `hf:owner/name` and `modelscope:owner/name`.

    hf:owner/name                    every file of rows (else every text file) of the repository
    hf:owner/name/data/a.parquet     one file; a folder or a pattern (data/train-*) is several
    hf:owner/name/config             the files that the dataset's card lists for a configuration
    hf:owner/name/a.jsonl@revision   of a branch, a tag or a commit

The hubs' own clients download, keep what they have in their caches, and read their usual
variables (HF_ENDPOINT, HF_TOKEN, HF_HOME; MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN). Files are
read by this project's readers, one by one: those of one repository may differ in their columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from sparrowlm.errors import ConfigError, DataError, EnvironmentFault
from sparrowlm.files import disk_faults
from sparrowlm.text.documents import format_of, inner_suffix
from sparrowlm.text.extras import need

TEXTS = (".txt", ".md", ".rst")
NO_DATA = (
    "README.md", "LICENSE.md", "LICENSE.txt", "dataset_info.json", "dataset_infos.json",
    "requirements.txt",
)  # fmt: skip
PREFIXES = ("hf:", "modelscope:")
HF_VARIABLE = "HF_ENDPOINT (such as https://hf-mirror.com)"


class Address(NamedTuple):
    """What an input on a hub names."""

    hub: str  # hf or modelscope
    repository: str  # owner/name
    path: str  # a file, folder, pattern or configuration; "": all of it
    revision: str | None


class Hub(Protocol):
    """What is asked of a hub's client."""

    host: str

    def files(self) -> list[str]:
        """The names of all files in the repository."""
        ...

    def patterns(self, config: str) -> list[str]:
        """The patterns of the files of a configuration; empty where there is none of the name."""
        ...

    def download(self, name: str) -> str:
        """The path of a file in the client's cache."""
        ...


def is_address(path: str) -> bool:
    """Whether an input names something on a hub."""
    return path.startswith(PREFIXES)


def parse_address(text: str) -> Address:
    """
    >>> parse_address("hf:owner/name/data/a.jsonl@main")
    Address(hub='hf', repository='owner/name', path='data/a.jsonl', revision='main')

    Raises:
        DataError: it names no owner or no dataset.
    """
    hub, _, rest = text.partition(":")
    place, _, revision = rest.partition("@")  # a revision may hold slashes, so it comes last
    parts = [part for part in place.split("/") if part]
    if len(parts) < 2:
        raise DataError(
            "names no dataset", where=text, fix=f"{hub}:owner/name, perhaps with /a/file of it"
        )
    return Address(hub, "/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def fetch(text: str, mirror: str = "", passed_over: Counter[str] | None = None) -> list[Path]:
    """Download what an address names, as far as it is not here already.

    Args:
        text: the address.
        mirror: the hub's other address, such as "https://mirror.example"; "": what the client
            takes by itself, HF_ENDPOINT or MODELSCOPE_ENDPOINT where they are set.
        passed_over: counts files of a repository that are no data.

    Returns:
        The files, in the order of their names.

    Raises:
        ConfigError: the mirror is no address.
        DataError: the hub has no such thing or does not give it; its client is not installed.
        EnvironmentFault: the hub does not answer.
    """
    address = parse_address(text)
    check_mirror(mirror, "data.mirror")
    hub = _hugging_face(address, mirror) if address.hub == "hf" else _modelscope(address, mirror)
    with hub as client:
        if is_file(address.path):  # not listed first: what is in the cache is then read offline
            return [Path(client.download(address.path))]
        names = choose(client.files(), address, client)
        data = names if names == [address.path] else data_files(names)
        if passed_over is not None and len(data) < len(names):
            passed_over[f"of {address.repository} without text"] += len(names) - len(data)
        if not data:
            raise DataError(
                f"{client.host} has no file of text there", where=text, fix="name one of its files"
            )
        return [Path(client.download(name)) for name in data]


def check_mirror(mirror: str, where: str) -> None:
    """Whether a mirror is a host's address; "" is none.

    Raises:
        ConfigError: it is not.
    """
    try:
        place = urlsplit(mirror)
        right = not mirror or (place.scheme in ("http", "https") and bool(place.hostname))
    except ValueError:  # half of a bracket
        right = False
    if not right:
        raise ConfigError(f'"{mirror}" is no address', where=where, fix="https://HOST")


def is_file(path: str) -> bool:
    """Whether a path in a repository names one file, by its suffix.

    >>> is_file("data/a.jsonl.gz"), is_file("data"), is_file("data/*.parquet")
    (True, False, False)
    """
    return (format_of(path) != "plain" or inner_suffix(path) in TEXTS) and not has_magic(path)


def choose(names: list[str], address: Address, hub: Hub) -> list[str]:
    """The files of a repository that an address means, sorted.

    Raises:
        DataError: it names none of them.
    """
    path = address.path
    if not path:
        return sorted(names)
    found = [name for name in names if name.startswith(f"{path}/") or fnmatchcase(name, path)]
    if not found:
        patterns = hub.patterns(path)
        found = [name for name in names if any(fnmatchcase(name, held) for held in patterns)]
    if not found:
        shown = ", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else "")
        raise DataError(
            f"{hub.host}: {address.repository} has no file, folder or configuration {path!r}",
            where=f"{address.hub}:{address.repository}/{path}",
            fix=f"it has {shown or 'no files'}",
        )
    return sorted(found)


def data_files(names: list[str]) -> list[str]:
    """Those that hold rows; where none does, those that hold text. Descriptions are neither, and
    `.json` beside other rows or `.txt` is settings."""
    kept = [name for name in names if PurePosixPath(name).name not in NO_DATA]
    kept = [name for name in kept if not any(part.startswith(".") for part in name.split("/"))]
    rows = [name for name in kept if format_of(name) not in ("plain", "array")]
    texts = [name for name in kept if inner_suffix(name) in TEXTS]
    if rows or any(inner_suffix(name) == ".txt" for name in texts):
        return rows or texts
    return [name for name in kept if format_of(name) == "array"] or texts


class _HuggingFace:
    def __init__(self, address: Address, mirror: str) -> None:
        library = need("huggingface_hub", "hubs", f"hf:{address.repository}")
        self._address = address
        self._api = library.HfApi(endpoint=mirror or None)
        self.host: str = self._api.endpoint
        self._place = {
            "repo_id": address.repository,
            "repo_type": "dataset",
            "revision": address.revision,
        }

    def files(self) -> list[str]:
        return self._api.list_repo_files(**self._place)

    def patterns(self, config: str) -> list[str]:
        info = self._api.dataset_info(self._address.repository, revision=self._address.revision)
        configs = (info.card_data or {}).get("configs") or []
        listed = [entry for entry in configs if entry.get("config_name") == config]
        return [pattern for entry in listed for pattern in card_patterns(entry.get("data_files"))]

    def download(self, name: str) -> str:
        return self._api.hf_hub_download(filename=name, **self._place)


class _ModelScope:
    def __init__(self, address: Address, mirror: str) -> None:
        library = need("modelscope_hub", "modelscope", f"modelscope:{address.repository}")
        self._address = address
        self._api = library.HubApi(endpoint=mirror or None)
        self.host: str = mirror or library.get_default_config().endpoint

    def files(self) -> list[str]:
        entries = self._api.list_repo_files(
            self._address.repository, "dataset", revision=self._address.revision
        )
        return [entry.path for entry in entries if not entry.is_dir]

    def patterns(self, config: str) -> list[str]:
        return []

    def download(self, name: str) -> str:
        place = self._address
        return str(
            self._api.download_file(place.repository, "dataset", name, revision=place.revision)
        )


def card_patterns(data_files: Any) -> list[str]:
    """The patterns in a card's `data_files`: one, a list of them, or a list by split.

    >>> card_patterns([{"split": "train", "path": ["a/*.parquet"]}, "b.csv"])
    ['a/*.parquet', 'b.csv']
    """
    match data_files:
        case str():
            return [data_files]
        case list():
            return [pattern for entry in data_files for pattern in card_patterns(entry)]
        case {"path": path}:
            return card_patterns(path)
        case _:
            return []


@contextmanager
def _hugging_face(address: Address, mirror: str) -> Iterator[Hub]:
    """A client whose faults are told in our words."""
    client = _HuggingFace(address, mirror)
    with hugging_face_faults(client.host, address.repository):
        yield client


@contextmanager
def hugging_face_faults(host: str, repository: str) -> Iterator[None]:
    """Tell what the client of Hugging Face's hub meets, asking for a dataset, in our words.

    Raises:
        DataError: the hub does not have it, or does not give it to everybody.
        EnvironmentFault: the hub does not answer.
    """
    from huggingface_hub import errors

    where, page = f"hf:{repository}", f"{host}/datasets/{repository}"
    try:
        with disk_faults(Path(where)):
            yield
    except errors.GatedRepoError as fault:
        raise gated(host, where, page, "HF_TOKEN") from fault
    except errors.RepositoryNotFoundError as fault:
        raise absent(host, where, "the dataset", "HF_TOKEN") from fault
    except errors.RevisionNotFoundError as fault:
        raise absent(host, where, "the revision") from fault
    except errors.RemoteEntryNotFoundError as fault:
        raise absent(host, where, "the file") from fault
    except errors.HFValidationError as fault:
        raise DataError(str(fault), where=where, fix="hf:owner/name") from fault
    except (errors.HTTPError, OSError) as fault:  # the HTTP library differs from version to version
        answer = fault.response if isinstance(fault, errors.HfHubHTTPError) else None
        status = 0 if answer is None else answer.status_code
        if status in REFUSED:
            raise gated(host, where, page, "HF_TOKEN", f"HTTP {status}") from fault
        if status in GONE:
            raise absent(host, where, "the dataset", "HF_TOKEN") from fault
        raise silent(host, where, first_line(fault), HF_VARIABLE) from fault


@contextmanager
def _modelscope(address: Address, mirror: str) -> Iterator[Hub]:
    """As `_hugging_face`."""
    client = _ModelScope(address, mirror)
    import modelscope_hub as library
    import requests

    where = f"modelscope:{address.repository}"
    try:
        with disk_faults(Path(where)):
            yield client
    except library.NotExistError as fault:
        raise absent(client.host, where, "it", "MODELSCOPE_API_TOKEN") from fault
    except (library.AuthenticationError, library.PermissionDeniedError) as fault:
        page = f"{client.host}/datasets/{address.repository}"
        raise gated(client.host, where, page, "MODELSCOPE_API_TOKEN", str(fault)) from fault
    except (library.HubError, requests.RequestException) as fault:
        raise silent(client.host, where, first_line(fault), "MODELSCOPE_ENDPOINT") from fault


REFUSED, GONE = (401, 403), (404, 410)
"""HTTP's words for what a server gives only to some, and for what it does not have."""


def gated(host: str, where: str, page: str, token: str, why: str = "") -> DataError:
    """A server that gives something only to some.

    Args:
        host: of the server.
        where: what was asked for.
        page: where its terms are.
        token: the variable that says who asks.
        why: in the server's words.
    """
    return DataError(
        f"{host} gives it only to people who are logged in, or have accepted its terms",
        where=where,
        why=why,
        fix=f"accept them at {page}, then set {token}",
    )


def absent(host: str, where: str, what: str, token: str = "") -> DataError:
    """A server that does not have something, or hides it from those who do not say who asks."""
    private = f"; for a private one, set {token}" if token else ""
    return DataError(
        f"{host} does not have {what}",
        where=where,
        fix=f"check the name, or set a mirror: data.mirror (--mirror){private}",
    )


def silent(host: str, where: str, why: str, variable: str) -> EnvironmentFault:
    """A server that does not answer; the variable names another one."""
    return EnvironmentFault(
        f"{host} does not answer",
        where=where,
        why=why,
        fix="check the network and HTTPS_PROXY, or set a mirror: data.mirror (--mirror), of a hub"
        f" also {variable}",
    )


def first_line(fault: Exception) -> str:
    """What an exception says first, or its name where it says nothing."""
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return (lines or [type(fault).__name__])[0][:200]

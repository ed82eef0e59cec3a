"""A known corpus, downloaded: which files there are, which are here already, the rest."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sparrowlm import files
from sparrowlm.data.corpora import KnownCorpus
from sparrowlm.data.fetch import Remote, fetch, is_right
from sparrowlm.data.hub import check_mirror, hugging_face_faults
from sparrowlm.data.lock import locked
from sparrowlm.errors import ConfigError, DataError, EnvironmentFault
from sparrowlm.text.documents import ORIGIN
from sparrowlm.text.extras import need

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PART = ".part"  # hidden: what reads the folder as text passes it over

Progress = Callable[[str, int, int], None]


class Downloaded(NamedTuple):
    """What is in the folder now."""

    paths: list[Path]
    bytes: int
    fetched: int  # files that were not here before


def download(
    corpus: KnownCorpus,
    out: Path,
    *,
    mirror: str = "",
    accept_license: bool = False,
    limit: int = 0,
    progress: Progress | None = None,
) -> Downloaded:
    """Bring a corpus into a folder. What is here and right is not fetched again, and a file that
    was cut off goes on where it was.

    Args:
        corpus: which one.
        out: the folder.
        mirror: another server, in place of the corpus' own or of $HF_ENDPOINT.
        accept_license: the user has read a license that is not clear.
        limit: only the first so many files; 0: all.
        progress: told of each file's bytes.

    Raises:
        ConfigError: the license is not clear and was not accepted, or the mirror is no address.
        DataError: the server has no such file or does not give it, another file is in its place
            here, or the hub's client is not installed.
        EnvironmentFault: no server, no space, or not what was promised.
    """
    if not corpus.clear and not accept_license:
        raise ConfigError(
            f"{corpus.name} has a license that is unclear or forbids some uses: {corpus.license}",
            where=corpus.card,
            fix="read it; if your use is allowed, add --accept-license",
        )
    check_mirror(mirror, "--mirror")
    remotes = list_files(corpus, mirror)[: limit or None]
    with locked(out, wait=False):
        missing = [remote for remote in remotes if not _is_here(remote, out)]
        _check_space(missing, out)
        for remote in missing:
            part = out / PART / remote.name

            def heard(done: int, remote: Remote = remote) -> None:
                if progress is not None:
                    progress(remote.name, done, remote.size or 0)

            fetch(remote, out / remote.name, part, heard)
        _write_origin(corpus, remotes, out)
        _tidy(out / PART, whole=not limit)
    paths = [out / remote.name for remote in remotes]
    return Downloaded(paths, sum(path.stat().st_size for path in paths), len(missing))


def list_files(corpus: KnownCorpus, mirror: str = "") -> list[Remote]:
    """The files of a corpus, with the sizes and checksums that the hub or the table knows."""
    if corpus.hub:
        return _hub_files(corpus, mirror)
    url = corpus.url
    if mirror:
        url = mirror.rstrip("/") + urlsplit(url).path
    return [Remote(corpus.file, url, int(corpus.size), corpus.sha256)]


def _hub_files(corpus: KnownCorpus, mirror: str) -> list[Remote]:
    """What the hub's client says; it knows the endpoint, the login, and pages of long lists."""
    library = need("huggingface_hub", "hubs", f"sparrow data download {corpus.name}")
    api: HfApi = library.HfApi(endpoint=mirror.rstrip("/") or None)
    found: list[Remote] = []
    with hugging_face_faults(api.endpoint, corpus.hub):
        revision = api.dataset_info(corpus.hub).sha or "main"  # files of one moment
        for pattern in corpus.patterns:
            found += _matching(api, corpus.hub, revision, pattern)
    if not found:
        raise DataError(
            f"has none of {', '.join(corpus.patterns)} in {corpus.hub}",
            where=api.endpoint,
            why="the dataset has been rearranged since this version of Sparrow",
            fix="download it by hand, and report it",
        )
    return found


def _matching(api: HfApi, dataset: str, revision: str, pattern: str) -> list[Remote]:
    """A dataset's files that match a pattern, by name; one without a wildcard must be there."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import build_hf_headers

    if glob.has_magic(pattern):
        folder = pattern.rpartition("/")[0] or None
        entries = api.list_repo_tree(dataset, folder, revision=revision, repo_type="dataset")
    else:
        entries = api.get_paths_info(dataset, [pattern], revision=revision, repo_type="dataset")
    place = {"repo_type": "dataset", "revision": revision, "endpoint": api.endpoint}
    return sorted(
        (
            Remote(
                entry.path,
                hf_hub_url(dataset, entry.path, **place),
                entry.size,
                entry.lfs.sha256 if entry.lfs else "",
                "" if entry.lfs else entry.blob_id,
                build_hf_headers(),
            )
            for entry in entries
            if isinstance(entry, RepoFile) and fnmatchcase(entry.path, pattern)
        ),
        key=lambda remote: remote.name,
    )


def _is_here(remote: Remote, out: Path) -> bool:
    """Whether a file is in the folder already.

    Raises:
        DataError: something else is under its name.
    """
    path = out / remote.name
    if not path.exists():
        return False
    if not is_right(remote, path):
        raise DataError(
            "is there, and is not the file to be downloaded",
            where=str(path),
            why="its size or checksum differs; the corpus may have changed since",
            fix="remove it, or choose another --out",
        )
    return True


def _check_space(missing: list[Remote], out: Path) -> None:
    """
    Raises:
        EnvironmentFault: the disk has less space than is needed.
    """
    with files.disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in (out / PART).rglob("*") if path.is_file())
    needed = sum(remote.size or 0 for remote in missing) - there
    free = shutil.disk_usage(out).free
    if needed > free:
        raise EnvironmentFault(
            f"has {free / 1e9:,.1f} GB free, and {needed / 1e9:,.1f} GB are to come",
            where=str(out),
            fix="free some space, choose another --out, or take fewer files: --files N",
        )


def _tidy(parts: Path, whole: bool) -> None:
    """Remove what is left of the parts: all, or where only some files were wanted, empty folders.
    Of the other files a later run goes on with what has come."""
    if whole:
        shutil.rmtree(parts, ignore_errors=True)
        return
    for folder in sorted([parts, *parts.rglob("*")], reverse=True):  # the innermost first
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_origin(corpus: KnownCorpus, remotes: list[Remote], out: Path) -> None:
    """Where the files are from, and under which license they came: those that are asked for, and
    those that are here from before."""
    before = files.read_json(out / ORIGIN) if (out / ORIGIN).is_file() else {}
    names = {remote.name for remote in remotes}
    kept = [
        file
        for file in (before["files"] if before.get("corpus") == corpus.name else [])
        if file["name"] not in names and (out / file["name"]).is_file()
    ]
    files.write_json(
        out / ORIGIN,
        {
            "corpus": corpus.name,
            "from": corpus.card,
            "license": corpus.license,
            "files": [
                {
                    "name": remote.name,
                    "url": remote.url,
                    "sha256": files.hash_file(out / remote.name),
                }
                for remote in remotes
            ]
            + kept,
        },
    )

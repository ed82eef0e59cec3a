"""An export goes to a hub, with the hub's own client: `hf:owner/name`, `modelscope:owner/name`.

The clients find their token by themselves (HF_TOKEN or `hf auth login`; MODELSCOPE_API_TOKEN), and
their address too (HF_ENDPOINT, MODELSCOPE_ENDPOINT). Nothing is made public that a person did not
ask for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sparrowlm import files
from sparrowlm.data.hub import Address, check_mirror, first_line, is_address, parse_address
from sparrowlm.errors import ConfigError, DataError, EnvironmentFault, RunError
from sparrowlm.share.export.card import UNKNOWN
from sparrowlm.share.export.writing import CARD, Format, export
from sparrowlm.text.extras import need

TOKENS = {
    "hf": "set HF_TOKEN to a token that may write (huggingface.co/settings/tokens)",
    "modelscope": "set MODELSCOPE_API_TOKEN (modelscope.cn/my/myaccesstoken)",
}


class Parcel(NamedTuple):
    """What would be uploaded."""

    folder: Path
    files: list[tuple[str, int]]
    """Names and bytes, in order."""
    license: str
    """As the model card says; "unknown" where nobody told."""


def target_of(text: str) -> Address:
    """Where to, from what a person typed.

    Raises:
        DataError: no owner or no name.
        ConfigError: another kind of address, or one that goes into a repository.
    """
    if not is_address(text):
        raise ConfigError(
            f'"{text}" names no hub', where="TARGET", fix="hf:owner/name or modelscope:owner/name"
        )
    address = parse_address(text)
    if address.path or address.revision:
        raise ConfigError(
            f"{text} leads into a repository",
            where="TARGET",
            fix=f"{address.hub}:{address.repository}: an export is the whole of one",
        )
    return address


@contextmanager
def parcel(
    path: Path,
    to: Format,
    *,
    dtype: str = "",
    adapter: Path | None = None,
    license: str = "",
    known_as: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Parcel]:
    """An export folder as it is, once it verifies; or an export of a run, made for the upload.

    Raises:
        ConfigError: settings of an export beside one that exists.
        RunError: a file of the export differs from its manifest; or as of `export`.
    """
    if is_export(path):
        if dtype or adapter or license:
            raise ConfigError(
                "is an export already", where=str(path), fix="leave out --dtype, --adapter,"
                " --license, or give the run"
            )  # fmt: skip
        files.verify(path)
        yield opened(path)
        return
    with tempfile.TemporaryDirectory(prefix="sparrow-push-") as place:
        out = Path(place) / "export"
        told = {"dtype": dtype, "adapter": adapter, "license": license, "known_as": known_as}
        export(path, to, out, **told, say=say)
        yield opened(out)


def is_export(path: Path) -> bool:
    """Whether a folder is what `sparrow export` wrote."""
    model = (path / "config.json").is_file() or any(path.glob("*.gguf"))
    return model and (path / files.MANIFEST).is_file() and (path / CARD).is_file()


def opened(folder: Path) -> Parcel:
    """What is in an export folder."""
    listed = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    head = (folder / CARD).read_text(encoding="utf-8").split("\n---", 1)[0]
    told = re.search(r'^license: *"?([^"\n]*)"?$', head, flags=re.M)
    return Parcel(folder, listed, told[1] if told else UNKNOWN)


def push(what: Parcel, target: Address, *, public: bool = False, mirror: str = "") -> str:
    """Upload a parcel; the repository is made where there is none.

    Args:
        what: of `parcel`.
        target: of `target_of`.
        public: let everyone see it; otherwise a public repository that exists is refused.
        mirror: another address of the hub, https://HOST; "" leaves it to the client.

    Returns:
        Where it is now.

    Raises:
        ConfigError: the mirror is no address.
        DataError: the hub does not take it (no token, or one that may not write there), or its
            client is not installed.
        RunError: the repository is there and not private.
        EnvironmentFault: the hub does not answer.
    """
    check_mirror(mirror, "--mirror")
    if target.hub == "hf":
        return _to_hugging_face(what, target.repository, public, mirror)
    return _to_modelscope(what, target.repository, public, mirror)


def _to_hugging_face(what: Parcel, repository: str, public: bool, mirror: str) -> str:
    where = f"hf:{repository}"
    library = need("huggingface_hub", "hubs", where)
    from huggingface_hub import errors

    api = library.HfApi(endpoint=mirror or None, library_name="sparrow")
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and api.model_info(repository).private is not True:
            _refuse_public(where)
        api.upload_folder(
            repo_id=repository, folder_path=what.folder, commit_message="Export of a Sparrow run"
        )
    except errors.HfHubHTTPError as fault:
        if fault.response.status_code in (401, 403, 404):
            _refuse(api.endpoint, where, "hf", fault)
        _fail(api.endpoint, where, fault)
    except (errors.HTTPError, OSError) as fault:
        _fail(api.endpoint, where, fault)
    except ValueError as fault:  # a name, or the head of the model card
        raise DataError(
            f"{api.endpoint} has rules that this breaks",
            where=where,
            why=" ".join(str(fault).split())[:300],
            fix="hf:owner/name; --license takes an identifier such as apache-2.0 or other",
        ) from fault
    return str(address)


def _to_modelscope(what: Parcel, repository: str, public: bool, mirror: str) -> str:
    where = f"modelscope:{repository}"
    library = need("modelscope_hub", "modelscope", where)
    import requests

    api = library.HubApi(endpoint=mirror or None)
    host = mirror or library.get_default_config().endpoint
    try:
        if api.repo_exists(repository, "model"):
            if not public and not _is_private(api.get_repo(repository, "model")):
                _refuse_public(where)
        else:
            # Without a license the client would claim Apache-2.0.
            license = what.license if what.license != UNKNOWN else "other"
            visibility = "public" if public else "private"
            api.create_repo(repository, "model", visibility=visibility, license=license)
        api.upload_folder(
            repository,
            "model",
            what.folder,
            commit_message="Export of a Sparrow run",
            use_cache=False,  # it would be written into the folder
        )
    except (library.AuthenticationError, library.PermissionDeniedError) as fault:
        _refuse(host, where, "modelscope", fault)
    except library.InvalidParameter as fault:
        raise DataError(str(fault), where=where, fix="modelscope:owner/name") from fault
    except (library.HubError, requests.RequestException, OSError) as fault:
        _fail(host, where, fault)
    return f"{host}/models/{repository}"


def _is_private(info: Any) -> bool:
    return getattr(info.visibility, "name", info.visibility) in ("PRIVATE", "private")


def _refuse_public(where: str) -> NoReturn:
    raise RunError(
        "is there already, and not private",
        where=where,
        why="what is uploaded there can be seen by everyone at once",
        fix="add --public if that is meant, or choose another name",
    )


def _refuse(host: str, where: str, hub: str, fault: Any) -> NoReturn:
    raise DataError(
        f"{host} does not let this token write there",
        where=where,
        why=first_line(fault),
        fix=f"{TOKENS[hub]}, and check the owner's name",
    ) from fault


def _fail(host: str, where: str, fault: Exception) -> NoReturn:
    raise EnvironmentFault(
        f"{host} did not take the upload",
        where=where,
        why=first_line(fault),
        fix="check the network and run the same command again: what is there already is kept",
    ) from fault

"""Downloads from a server on this machine that answers as a hub does; its real client asks."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sparrowlm.cli import main
from sparrowlm.data import corpora, fetch
from sparrowlm.data import hub as hub_module
from sparrowlm.data.corpora import CORPORA, KnownCorpus
from sparrowlm.data.download import PART, download
from sparrowlm.errors import ConfigError, DataError, EnvironmentFault, RunError
from sparrowlm.text.documents import ORIGIN, find_inputs

REVISION = "0123456789abcdef0123456789abcdef01234567"
STORIES = KnownCorpus(
    "stories", "two parts", "CC0-1.0", True, 1e5,
    hub="me/stories", patterns=("a.txt", "parts/*.jsonl"),
)  # fmt: skip


@dataclass
class Hub:
    """A dataset on a server, and what happens to those who ask for it."""

    files: dict[str, bytes]
    large: tuple[str, ...] = ()  # whose hash is LFS's
    cut_after: int = 0  # bytes sent before the connection breaks
    cuts: int = 0  # how often
    status: int = 0  # instead of any answer
    wrong: bool = False  # contents differ from what is told of them
    ranges: list[str] = field(default_factory=list)  # asked for
    logins: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    state = Hub(
        {
            "a.txt": b"small\n",
            "parts/1.jsonl": b'{"text": "one"}\n' * 5000,
            "parts/2.jsonl": b'{"text": "two"}\n' * 5000,
            "parts/readme.md": b"not asked for",
        },
        large=("parts/1.jsonl", "parts/2.jsonl"),
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            answer(self, state)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    path = urlsplit(request.path).path
    request.rfile.read(int(request.headers.get("Content-Length") or 0))
    if hub.status:
        return send(request, hub.status, b"no")
    if path == "/api/datasets/me/stories":
        return send_json(request, {"id": "me/stories", "sha": REVISION, "siblings": []})
    if path == f"/api/datasets/me/stories/tree/{REVISION}/parts":
        return send_json(request, [entry(hub, name) for name in hub.files if "/" in name])
    if path == f"/api/datasets/me/stories/paths-info/{REVISION}":
        return send_json(request, [entry(hub, "a.txt")])
    place = f"/datasets/me/stories/resolve/{REVISION}/"
    name = path.removeprefix(place).removeprefix("/plain/")
    if name not in hub.files:
        return send(request, 404, b"no such thing")
    return send_file(request, hub, hub.files[name])


def entry(hub: Hub, name: str) -> dict[str, object]:
    content = hub.files[name]
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name in hub.large:
        oid = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return found


def send(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    send(request, 200, json.dumps(value).encode())


def send_file(request: BaseHTTPRequestHandler, hub: Hub, content: bytes) -> None:
    content = content[::-1] if hub.wrong else content
    asked = request.headers.get("Range") or ""
    hub.ranges.append(asked)
    hub.logins.append(request.headers.get("Authorization"))
    start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
    request.send_response(206 if asked else 200)
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    if hub.cuts and len(content) - start > hub.cut_after:
        hub.cuts -= 1
        request.wfile.write(content[start : start + hub.cut_after])
        request.wfile.flush()
        request.close_connection = True
        return
    request.wfile.write(content[start:])


def test_a_hubs_files_come_in_checked(hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    out = tmp_path / "stories"
    done = download(STORIES, out, mirror=hub.address, progress=lambda *args: told.append(args))
    names = ["a.txt", "parts/1.jsonl", "parts/2.jsonl"]
    assert [path.relative_to(out).as_posix() for path in done.paths] == names
    assert all((out / name).read_bytes() == hub.files[name] for name in names)
    assert (done.fetched, done.bytes) == (3, sum(len(hub.files[name]) for name in names))
    assert told[-1] == ("parts/2.jsonl", 80_000, 80_000)
    origin = json.loads((out / ORIGIN).read_text())
    assert (origin["corpus"], origin["license"]) == ("stories", "CC0-1.0")
    assert origin["files"][1]["sha256"] == hashlib.sha256(hub.files[names[1]]).hexdigest()
    passed_over: Counter[str] = Counter()
    assert find_inputs([str(out)], passed_over) == done.paths  # nothing else in the folder is text
    assert not passed_over  # and of what a download writes of itself no user is told


def test_what_is_here_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    download(STORIES, tmp_path, mirror=hub.address, limit=2)
    assert not (tmp_path / "parts" / "2.jsonl").exists()
    hub.ranges.clear()
    assert download(STORIES, tmp_path, mirror=hub.address).fetched == 1
    assert len(hub.ranges) == 1


def test_fewer_files_take_nothing_from_the_others(hub: Hub, tmp_path: Path) -> None:
    """Neither what has come of them, nor where those that are here came from."""
    part = tmp_path / PART / "parts" / "2.jsonl"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.files["parts/2.jsonl"][:30_000])
    download(STORIES, tmp_path, mirror=hub.address, limit=2)
    hub.ranges.clear()
    download(STORIES, tmp_path, mirror=hub.address)
    assert hub.ranges == ["bytes=30000-"]
    assert not (tmp_path / PART).exists()
    before = json.loads((tmp_path / ORIGIN).read_text())
    download(STORIES, tmp_path, mirror=hub.address, limit=1)
    assert json.loads((tmp_path / ORIGIN).read_text()) == before
    (tmp_path / "parts" / "1.jsonl").unlink()
    download(STORIES, tmp_path, mirror=hub.address, limit=1)
    names = [file["name"] for file in json.loads((tmp_path / ORIGIN).read_text())["files"]]
    assert names == ["a.txt", "parts/2.jsonl"]  # and not what is here no more
    assert not (tmp_path / PART).exists()


def test_a_cut_connection_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts = 30_000, 3
    done = download(STORIES, tmp_path, mirror=hub.address)
    assert all(path.stat().st_size in (6, 80_000) for path in done.paths)
    assert hub.ranges == ["", "", "bytes=30000-", "bytes=60000-", "", "bytes=30000-"]


def test_a_lost_server_leaves_a_part_that_the_next_run_takes_up(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts = 30_000, 1
    remote = fetch.Remote("1", f"{hub.address}/plain/parts/1.jsonl", 80_000)
    part = tmp_path / "part"

    def gone(_: int) -> None:
        hub.status = 503

    with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1\S* does not answer(.|\n)*HTTP 503"):
        fetch.fetch(remote, tmp_path / "1", part, gone)
    assert part.stat().st_size == 30_000
    assert not (tmp_path / "1").exists()
    hub.status = 0
    hub.ranges.clear()
    fetch.fetch(remote, tmp_path / "1", part, lambda _: None)
    assert hub.ranges == ["bytes=30000-"]
    assert (tmp_path / "1").read_bytes() == hub.files["parts/1.jsonl"]


@pytest.mark.parametrize("names", [("a.txt",), ("parts/*.jsonl",)])
def test_a_wrong_checksum_is_refused(hub: Hub, tmp_path: Path, names: tuple[str, ...]) -> None:
    hub.wrong = True
    with pytest.raises(EnvironmentFault, match="is not what it should be"):
        download(replace(STORIES, patterns=names), tmp_path / "out", mirror=hub.address)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_plain_address_is_checked_as_well(hub: Hub, tmp_path: Path) -> None:
    content = hub.files["parts/1.jsonl"]
    corpus = KnownCorpus(
        "plain",
        "a file",
        "CC0-1.0",
        True,
        size=len(content),
        url="https://example.org/plain/parts/1.jsonl",
        file="1.jsonl",
        sha256=hashlib.sha256(content).hexdigest(),
    )
    hub.cut_after, hub.cuts = 50_000, 1
    [path] = download(corpus, tmp_path, mirror=hub.address).paths
    assert path.read_bytes() == content
    wrong = replace(corpus, sha256="0" * 64)
    with pytest.raises(DataError, match="is not the file to be downloaded"):
        download(wrong, tmp_path, mirror=hub.address)
    with pytest.raises(EnvironmentFault, match="is not what it should be"):
        download(wrong, tmp_path / "other", mirror=hub.address)
    with pytest.raises(DataError, match=r"does not have gone \(HTTP 404\)"):
        fetch.fetch(fetch.Remote("gone", f"{hub.address}/plain/gone"), path, path, lambda _: None)


def test_a_login_stays_with_the_server_it_is_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(STORIES, tmp_path, mirror=hub.address, limit=1)
    assert hub.logins == ["Bearer hf_secret"]


def test_an_unclear_license_is_accepted_first(hub: Hub, tmp_path: Path) -> None:
    unclear = replace(STORIES, clear=False, license="for research")
    with pytest.raises(ConfigError, match=r"for research(.|\n)*--accept-license"):
        download(unclear, tmp_path / "out", mirror=hub.address)
    assert not (tmp_path / "out").exists()
    assert hub.ranges == []
    download(unclear, tmp_path / "out", mirror=hub.address, accept_license=True)


@pytest.mark.parametrize(("status", "told"), [(404, "does not have"), (403, "HF_TOKEN")])
def test_what_a_hub_refuses_is_named(hub: Hub, tmp_path: Path, status: int, told: str) -> None:
    hub.status = status
    with pytest.raises(DataError, match=rf"hf:me/stories: {hub.address}(.|\n)*{told}"):
        download(STORIES, tmp_path, mirror=hub.address)
    with pytest.raises(DataError, match=rf"hf:me/stories: {hub.address}(.|\n)*{told}"):
        hub_module.fetch("hf:me/stories", hub.address)  # an address is told of in the same words
    remote = fetch.Remote("a.txt", f"{hub.address}/datasets/me/stories/resolve/main/a.txt")
    with pytest.raises(DataError, match=rf"does not have a\.txt|HTTP {status}"):
        fetch.fetch(remote, tmp_path / "a.txt", tmp_path / "part", lambda _: None)


@pytest.mark.parametrize("mirror", ["hf-mirror.com", "https://", "http://[half"])
def test_a_mirror_that_is_no_address_is_named(tmp_path: Path, mirror: str) -> None:
    for corpus in (STORIES, replace(STORIES, hub="", url="http://127.0.0.1:9/x", file="x")):
        with pytest.raises(ConfigError, match=r"--mirror: .* is no address"):
            download(corpus, tmp_path / "out", mirror=mirror)


def test_no_server_at_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    plain = replace(STORIES, hub="", url="http://127.0.0.1:9/x", file="x")
    for corpus in (plain, STORIES):
        with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:9 does not answer") as told:
            download(corpus, tmp_path / "out", mirror="http://127.0.0.1:9")
        assert "HF_ENDPOINT" in str(told.value)


def test_a_hubs_client_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r'pip install "sparrowlm\[hubs\]"'):
        download(STORIES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_it_starts(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(EnvironmentFault, match="GB free"):
        download(STORIES, tmp_path, mirror=hub.address)
    assert hub.ranges == []


def test_two_downloads_into_one_folder_are_refused(hub: Hub, tmp_path: Path) -> None:
    from sparrowlm.data.lock import locked

    with locked(tmp_path / "out", wait=False), pytest.raises(RunError, match="another process"):
        download(STORIES, tmp_path / "out", mirror=hub.address)


def test_the_commands(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpora, "CORPORA", {"stories": STORIES})
    arguments = ["data", "download", "stories", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--mirror", hub.address]) == 0
    shown = capsys.readouterr().out
    assert shown.index("license: CC0-1.0") < shown.index("3 files, 160 kB, checked")
    assert main([*arguments, "--mirror", hub.address]) == 0
    assert "3 of them here already" in capsys.readouterr().out
    assert main(["data", "download", "storys"]) == 2
    assert "did you mean stories?" in capsys.readouterr().err


def test_the_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for name, corpus in CORPORA.items():
        assert name in shown
        assert corpus.license in shown
        assert bool(corpus.hub and corpus.patterns) != bool(corpus.url and corpus.file)
    assert all(len(line) <= 110 for line in shown.splitlines())

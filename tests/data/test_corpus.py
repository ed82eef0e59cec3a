from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from sparrowlm.data import corpus
from sparrowlm.data.corpus import installed_packages, python_sources, standard_library
from sparrowlm.data.split import held_groups
from sparrowlm.errors import DataError


def size_of(found: list[tuple[str, Path]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for module, path in found:
        sizes[module] = sizes.get(module, 0) + path.stat().st_size
    return sizes


def test_standard_library_is_what_the_readme_says() -> None:
    found = standard_library()
    sizes = size_of(found)
    total = sum(sizes.values())
    if total < corpus.ENOUGH:
        pytest.skip("this Python came without its own source")
    assert 5e6 < total < 20e6
    folder = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(folder).as_posix() for _, path in found]
    assert names == sorted(names)
    for module, path in found:
        parts = path.relative_to(folder).parts
        assert module == parts[0].removesuffix(".py")
        assert not {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"} & {*parts}
        assert not (parts[0] == "encodings" and parts[-1].startswith("cp"))
    assert {"json", "asyncio", "argparse", "encodings"} <= sizes.keys()
    held = held_groups(sizes, 0.1)
    assert 0.08 < sum(sizes[module] for module in held) / total < 0.13
    assert len(held) > 5


def test_sources_are_grouped_by_module() -> None:
    found = python_sources()
    assert all(source.group for source in found.sources)
    assert len({source.group for source in found.sources}) > 10


def test_installed_packages_stand_in_where_there_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    for number in range(30):
        folder = packages / f"package{number}"
        (folder / "tests").mkdir(parents=True)
        (folder / "code.py").write_text(f"value = {number}\n" * 8000)
        (folder / "tests" / "test_code.py").write_text("left out\n")
    places = {"stdlib": str(tmp_path / "none"), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_path", places.__getitem__)
    found = python_sources()
    assert found.description.startswith("the installed packages")
    assert len(found.sources) == 30
    assert installed_packages() == installed_packages()
    monkeypatch.setattr(corpus, "INSTALLED", 1_000_000)
    assert 0.9e6 < sum(size_of(installed_packages()).values()) <= 1e6
    with pytest.raises(DataError, match="no source code to learn from"):
        python_sources()

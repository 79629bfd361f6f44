"""What an adapter says when its framework is missing, too old, too new or broken."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest

import sessionstore
from sessionstore.adapters import framework

PACKAGE = Path(sessionstore.__file__).parent / "adapters"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

# What an adapter hands to `framework`, by the extra that it names.
CALL = re.compile(r'framework\(\s*"([^"]+)",\s*extra="([^"]+)",\s*tested="([^"]+)",?\s*\)')


def test_a_missing_package_names_the_pip_command() -> None:
    with (
        pytest.raises(ImportError, match=r"no-such-package is not installed") as caught,
        framework("no-such-package", extra="some", tested=">=1,<2"),
    ):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401  # it is not there
    assert "pip install 'sessionstore[some]'" in str(caught.value)
    assert caught.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("3.0", "pytest 3.0 is installed, which this adapter does not know"),
        ("0.9", "pytest 0.9 is installed, which this adapter does not know"),
        ("1.5", "pytest 1.5 does not import"),
    ],
)
def test_a_failing_import_names_the_version(
    monkeypatch: pytest.MonkeyPatch, found: str, says: str
) -> None:
    monkeypatch.setattr("sessionstore.adapters.version", lambda _: found)
    with (
        pytest.raises(ImportError) as caught,
        framework("pytest", extra="some", tested=">=1,<2"),
    ):
        from msgspec import no_such_name  # type: ignore[attr-defined]  # noqa: F401  # as it says
    assert says in str(caught.value)
    assert "no_such_name" in str(caught.value)
    assert "pip install 'sessionstore[some]'" in str(caught.value)


@pytest.mark.parametrize(
    ("found", "is_tested"),
    [
        ("1.0", True),
        ("1", True),
        ("1.0.0rc1", True),
        ("1.99.3", True),
        ("1.10", True),
        ("2.0", False),
        ("2.0.0b2", False),
        ("10.0", False),
        ("0.99", False),
        ("nonsense", False),
    ],
)
def test_an_untested_version_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, found: str, is_tested: bool
) -> None:
    monkeypatch.setattr("sessionstore.adapters.version", lambda _: found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with framework("pytest", extra="some", tested=">=1.0,<2"):
            pass
    assert [str(warning.message) for warning in caught] == (
        []
        if is_tested
        else [
            f"pytest {found} is installed; its sessionstore adapter is tested with >=1.0,<2",
        ]
    )
    if caught:
        assert caught[0].filename == __file__


def test_other_errors_pass() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        framework("pytest", extra="some", tested=">=1,<2"),
    ):
        print(1 / 0)


def adapters() -> list[Path]:
    """Modules that import a framework."""
    paths = [path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"]
    return [path for path in paths if CALL.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("path", adapters(), ids=lambda path: path.stem)
def test_the_extra_installs_what_the_adapter_is_tested_with(path: Path) -> None:
    extras = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    for package, extra, tested in CALL.findall(path.read_text("utf-8")):
        assert f"{package}{tested}" in extras[extra]


@pytest.mark.parametrize("path", adapters(), ids=lambda path: path.stem)
def test_an_adapter_without_its_framework_names_the_pip_command(path: Path) -> None:
    [(package, extra, _), *_] = CALL.findall(path.read_text("utf-8"))
    if _is_installed(package):
        pytest.skip(f"{package} is installed")
    outcome = subprocess.run(
        [sys.executable, "-c", f"import sessionstore.adapters.{path.stem}"],
        capture_output=True,
        text=True,
        check=False,
    )
    last = outcome.stderr.strip().splitlines()[-1]
    assert last == (f"ImportError: {package} is not installed: pip install 'sessionstore[{extra}]'")


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_package_itself_needs_no_framework() -> None:
    assert importlib.util.find_spec("sessionstore.adapters") is not None
    command = "import sessionstore.adapters.histories, sessionstore.adapters.packing"
    subprocess.run([sys.executable, "-W", "error", "-c", command], check=True)

"""What an index shows of a package: the fields of its metadata, and its page."""

from __future__ import annotations

import email.parser
import importlib
import re
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

from release.build import DISTRIBUTIONS
from release.steps import ReleaseError, run

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

__all__ = ["check_long_descriptions", "check_metadata", "check_with_twine"]


def check_with_twine(files: list[Path]) -> None:
    """Let twine check the files strictly."""
    run([sys.executable, "-m", "twine", "check", "--strict", *files], cwd=files[0].parent)
    print(f"twine check --strict: {len(files)} files passed")


def check_metadata(clone: Path, files: list[Path]) -> int:
    """Compare the metadata in wheel and sdist with pyproject.toml; return how many fields.

    Raises
    ------
    ReleaseError
        If a field differs.
    """
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    compared = 0
    for name in DISTRIBUTIONS:
        path = clone / "packages" / name / "pyproject.toml"
        expected = _expected(toml.loads(path.read_text(encoding="utf-8"))["project"], path.parent)
        for file in _of(name, files):
            found = _fields(_read(file))
            for field in sorted(expected.keys() | found.keys()):
                compared += 1
                if expected.get(field) != found.get(field):
                    raise ReleaseError(
                        f"{file.name}, field {field}: pyproject.toml says {expected.get(field)!r}, "
                        f"the file {found.get(field)!r}"
                    )
    print(f"metadata: {compared} fields equal what pyproject.toml says, in wheels and sdists")
    return compared


def check_long_descriptions(files: list[Path]) -> None:
    """Render the page of each package as an index does.

    Raises
    ------
    ReleaseError
        If one cannot be rendered, or links to a file that is not on the index.
    """
    markdown: Any = importlib.import_module("readme_renderer.markdown")
    for file in files:
        page = markdown.render(str(_read(file).get_payload()))
        if not page:
            raise ReleaseError(f"the README in {file.name} cannot be rendered")
        if links := re.findall(r'(?:href|src)="(?!https?://|#)([^"]*)"', page):
            raise ReleaseError(
                f"the README in {file.name} links to {', '.join(links)}: an index has no such file"
            )
    print(f"long descriptions: {len(files)} rendered, none links to a file that is not there")


def _of(name: str, files: list[Path]) -> list[Path]:
    return [file for file in files if file.name.startswith(name.replace("-", "_") + "-")]


def _read(file: Path) -> Message:
    """Return the metadata in a wheel or an sdist."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
            text = wheel.read(name).decode()
    else:
        with tarfile.open(file) as sdist:
            opened = sdist.extractfile(file.name.removesuffix(".tar.gz") + "/PKG-INFO")
            assert opened is not None
            text = opened.read().decode()
    return email.parser.Parser().parsestr(text)


def _fields(message: Message) -> dict[str, Any]:
    """Return the fields; those that may be repeated as sorted lists."""
    found: dict[str, Any] = {}
    for field in set(message.keys()) - {"Metadata-Version"}:
        values = sorted(str(value) for value in message.get_all(field, []))
        found[field] = [_normal(value) for value in values] if _is_list(field) else values[0]
    found["Requires-Dist"] = sorted(found.get("Requires-Dist", []))
    found["Provides-Extra"] = sorted(found.get("Provides-Extra", []))
    found["Description"] = str(message.get_payload()).strip()
    return found


def _is_list(field: str) -> bool:
    return field in {"Classifier", "License-File", "Provides-Extra", "Requires-Dist"}


def _normal(value: str) -> str:
    return value.replace(" ", "").replace("'", '"') if ">=" in value or "==" in value else value


def _without_own_extras(line: str, name: str, extras: dict[str, list[str]]) -> list[str]:
    """Return a requirement, or what it stands for if it names extras of its own package."""
    found = re.fullmatch(rf"{name}\[(.*)\]", line)
    return [each for extra in found[1].split(",") for each in extras[extra]] if found else [line]


def _expected(project: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields that a ``[project]`` table should give, like `_fields`."""
    extras = project.get("optional-dependencies", {})
    required = [
        *project["dependencies"],
        *(
            f"{line}; extra == '{extra}'"
            for extra, lines in extras.items()
            for each in lines
            for line in _without_own_extras(each, project["name"], extras)
        ),
    ]
    return {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "License-Expression": project["license"],
        "License-File": sorted(project["license-files"]),
        "Keywords": ",".join(sorted(project["keywords"])),
        "Classifier": sorted(project["classifiers"]),
        "Requires-Python": project["requires-python"],
        "Requires-Dist": sorted(_normal(line) for line in required),
        "Provides-Extra": sorted(extras),
        "Description-Content-Type": "text/markdown",
        "Description": (folder / project["readme"]).read_text(encoding="utf-8").strip(),
    }

"""Write a software bill of materials (CycloneDX 1.6, JSON) beside a wheel: `python -m tests.supply.sbom WHEEL`.

It lists what `pip install WHEEL` brings, without extras, in the versions of this environment, and who needs whom. Equal
wheels in equal environments give equal bytes: no time and no random number is in it.
"""

# The library's classes are made by decorators whose types a checker cannot follow.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import metadata, requires
from pathlib import Path
from zipfile import ZipFile

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LONGEST_LICENCE = 100  # some packages put the whole text where its name belongs


def needed(requirements: list[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(package, its extras) that requirements name on this system."""
    for text in requirements:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield canonicalize_name(one.name), frozenset(one.extras)


def component(about: Message, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    """A package by its metadata."""
    name, version = canonicalize_name(about["Name"]), about["Version"]
    licence = about["License-Expression"] or about["License"] or ""
    licences = LicenseFactory()
    return Component(
        name=name,
        version=version,
        type=kind,
        purl=PackageURL("pypi", name=name, version=version),
        bom_ref=f"{name}=={version}",
        licenses=[licences.make_from_string(licence, license_acknowledgement=LicenseAcknowledgement.DECLARED)]
        if 0 < len(licence) <= LONGEST_LICENCE
        else [],
    )


def bill(wheel: Path) -> str:
    """The bill of materials of a wheel, as JSON. Raises `importlib.metadata.PackageNotFoundError`."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = HeaderParser().parsestr(archive.read(name).decode())
    root = component(about, ComponentType.APPLICATION)
    root.hashes = [HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(wheel.read_bytes()).hexdigest())]
    bom = Bom()
    bom.metadata.component = root
    found: dict[str, Component] = {}
    extras_of: dict[str, frozenset[str]] = {}

    def add(owner: Component, requirements: list[str], extras: frozenset[str]) -> None:
        parts = []
        for name, wanted in needed(requirements, extras):
            if name not in found:
                found[name] = component(metadata(name))
                bom.components.add(found[name])
            if name not in extras_of or not wanted <= extras_of[name]:
                extras_of[name] = extras_of.get(name, frozenset()) | wanted
                add(found[name], requires(name) or [], extras_of[name])
            parts.append(found[name])
        bom.register_dependency(owner, parts)

    add(root, about.get_all("Requires-Dist") or [], frozenset())
    bom.serial_number = None
    bom.metadata.timestamp = None
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


if __name__ == "__main__":
    for given in sys.argv[1:]:
        path = Path(given).with_suffix(".cdx.json")
        path.write_text(bill(Path(given)), encoding="utf-8")
        print(path)

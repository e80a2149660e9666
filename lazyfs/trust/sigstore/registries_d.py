"""registries.d: whether an image's signatures are looked for beside it, and where else they are.

Spec: containers-registries.d(5).  The page says that only the most specific section counts;
containers/image (registries_d.go) takes each setting from the most specific section that has it,
and so does lazyfs.  Keys for writing are known and not needed; others are named in ``ignored``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.sigstore.encoding import quote
from lazyfs.trust.sigstore.scopes import normalised, scopes_of

FILE_LIMIT = 1 << 20  # bytes
FILES_LIMIT = 1000
SUFFIX = ".yaml"
FOR_WRITING = ("lookaside-staging", "sigstore-staging")
KEYS = ("lookaside", "sigstore", "use-sigstore-attachments")


class Section(msgspec.Struct, frozen=True):
    """The settings for a scope; None: it says nothing.  ``file`` is where it stands."""

    file: str
    lookaside: str | None = None
    attachments: bool | None = None


class Registries(msgspec.Struct, frozen=True):
    """All files together: scope → section, and the section for what has none."""

    sections: Mapping[str, Section] = {}
    default: Section | None = None
    ignored: tuple[str, ...] = ()


def parse_registries(files: Iterable[tuple[str, bytes]]) -> Registries:
    """Return what *files*, pairs of a name and its contents, say together.

    Files whose names do not end in ``.yaml`` are passed over.  Raises PolicyFault, also for a
    scope that two sections describe.
    """
    sections: dict[str, Section] = {}
    default: Section | None = None
    ignored: list[str] = []
    taken = [(name, data) for name, data in files if name.endswith(SUFFIX)]
    if len(taken) > FILES_LIMIT:
        raise PolicyFault(f"registries.d has {len(taken)} files, at most {FILES_LIMIT} are read")
    for name, data in taken:
        found = _File(name, ignored)
        document = found.object(found.document(data), "the document")
        for key in document:
            if key not in ("default-docker", "docker"):
                ignored.append(f"{name}: {quote(key)} is not used")
        if document.get("default-docker") is not None:
            if default is not None:
                raise PolicyFault(f"{name}: default-docker is in {default.file} already")
            default = found.section(document["default-docker"], "default-docker")
        for scope, value in found.object(document.get("docker"), "docker").items():
            key = normalised(scope)
            if key in sections:
                raise PolicyFault(
                    f"{name}: docker: {quote(scope)} is in {sections[key].file} already"
                )
            sections[key] = found.section(value, f"docker: {quote(scope)}")
    return Registries(sections, default, tuple(ignored))


def uses_attachments(registries: Registries, reference: Reference | LayoutReference) -> bool:
    """Say whether signatures of cosign are looked for beside an image: no, unless it is said."""
    for section in _sections(registries, reference):
        if section.attachments is not None:
            return section.attachments
    return False


def lookaside_of(registries: Registries, reference: Reference | LayoutReference) -> str | None:
    """Return the URL below which signatures are kept apart from the registry; None: nowhere."""
    for section in _sections(registries, reference):
        if section.lookaside:
            return section.lookaside
    return None


def _sections(registries: Registries, reference: Reference | LayoutReference) -> Iterable[Section]:
    """Yield the sections for an image, the most specific first."""
    if isinstance(reference, LayoutReference):
        return
    for scope in scopes_of(reference):
        if scope in registries.sections:
            yield registries.sections[scope]
    if registries.default is not None:
        yield registries.default


class _File:
    def __init__(self, name: str, ignored: list[str]) -> None:
        self.name = name
        self.ignored = ignored

    def document(self, data: bytes) -> Any:
        # PyYAML takes a while, and most machines have no registries.d.
        from lazyfs.documents.yaml_documents import parse_yaml  # noqa: PLC0415

        if len(data) > FILE_LIMIT:
            raise self.fault(f"longer than {FILE_LIMIT} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise self.fault(f"not valid UTF-8 at byte {exc.start}") from None
        return parse_yaml(text, self.fault)

    def section(self, value: Any, place: str) -> Section:
        found = self.object(value, place)
        for key in found:
            if key not in KEYS and key not in FOR_WRITING:
                self.ignored.append(f"{self.name}: {place}: {quote(key)} is not used")
        urls = []
        for key in ("lookaside", "sigstore"):
            url = found.get(key)
            if url is not None and not isinstance(url, str):
                raise self.fault(f"{place}: {key} must be a URL, not {quote(url)}")
            urls.append(url)
        attachments = found.get("use-sigstore-attachments")
        if attachments is not None and not isinstance(attachments, bool):
            raise self.fault(
                f"{place}: use-sigstore-attachments must be true or false, not {quote(attachments)}"
            )
        return Section(self.name, urls[0] or urls[1], attachments)

    def object(self, value: Any, place: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fault(f"{place} must have keys, not be {quote(value)}")
        return value

    def fault(self, text: str) -> PolicyFault:
        return PolicyFault(f"{self.name}: {text}")

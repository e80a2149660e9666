"""Templates in files: YAML or JSON, read strictly, and with other images in their places."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.documents import cut, make, parse_json, quote
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.template import MEANINGS, PAUSE, TEMPLATE_NAME, Container, EnvVar, Template
from lazyfs.documents.template_rules import faults, reference_fault
from lazyfs.oci.reference import LayoutReference, parse_reference

TEMPLATE_LIMIT = 256 << 10  # bytes


KIND = "ActorTemplate"


# Fields that other systems have, and what there is here.
INSTEAD = {
    "imagePullPolicy": "use --pull missing, always or never for each run",
    "mounts": "use volumeMounts in a container, and volumes in the template",
    "environment": "the field is env",
    "entrypoint": "command replaces the image's entrypoint, args its arguments",
    "cmd": "command replaces the image's entrypoint, args its arguments",
    "ports": "there is no port mapping; a sandbox without a network has no ports",
    "limits": "resources has memory, cpus and pids, for the whole sandbox",
    "requests": "resources has memory, cpus and pids, for the whole sandbox",
    "seccompProfile": "use security.seccomp, which holds for the whole sandbox",
    "allowPrivilegeEscalation": "use security.noNewPrivileges, which holds for the whole sandbox",
    "privileged": "name each privilege in capabilities.add and security",
    "readinessProbe": "the field is readyz",
}


def load_template(path: Path) -> Template:
    """Return the template in a file: JSON where its name ends so, else YAML."""
    try:
        with open(path, "rb") as file:
            data = file.read(TEMPLATE_LIMIT + 1)
    except OSError as exc:
        raise TemplateInvalid(f"template: {path}: {exc.strerror or exc}") from exc
    stem = path.name.partition(".")[0].lower()
    return decode_template(
        data,
        what=str(path),
        is_json=path.suffix == ".json",
        name=stem if re.match(TEMPLATE_NAME, stem) else "template",
    )


def decode_template(
    data: bytes, *, what: str = "template", is_json: bool = False, name: str = "template"
) -> Template:
    """Return the template in *data*, called *name* if it does not say.  Raises TemplateInvalid."""

    def complain(text: str) -> TemplateInvalid:
        return TemplateInvalid(f"{what}: {text}")

    if len(data) > TEMPLATE_LIMIT:
        raise complain(f"longer than {TEMPLATE_LIMIT} bytes")
    if is_json:
        return template_of_document(parse_json(data, complain), what=what, name=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise complain(f"not valid UTF-8 at byte {exc.start}") from exc
    # A restore reads none.
    from lazyfs.documents.yaml_documents import parse_yaml  # noqa: PLC0415

    return template_of_document(parse_yaml(text, complain), what=what, name=name)


def template_of_document(
    document: Any, *, what: str = "template", name: str = "template"
) -> Template:
    """Return the template that a document of JSON's types means; also what ``to_document`` made.

    Kubernetes' shape (apiVersion, kind, metadata, spec) is accepted.  Raises TemplateInvalid.
    """
    if not isinstance(document, dict):
        raise TemplateInvalid(f"{what}: must be an object with fields, not {quote(document)}")
    prefix = ""
    if "spec" in document or "kind" in document:
        document, prefix = _spec_of(document, what), "spec."
    # A selector of workers says where, not what.
    fields = {key: value for key, value in document.items() if key != "workerSelector"}
    fields.setdefault("name", name)

    def complain(text: str) -> TemplateInvalid:
        place = text.partition(":")[0]
        hint = INSTEAD.get(place.rpartition(".")[2]) if "unknown field" in text else None
        where = "metadata." if prefix and place == "name" else prefix
        return TemplateInvalid(
            f"{what}: {where}{text}", hint=hint, details={"field": where + place}
        )

    template = make(Template, _without_nulls(fields), complain, MEANINGS)
    for fault in faults(template):
        raise complain(cut(fault))
    return template


def template_of_image(
    ref: str, command: Sequence[str] = (), *, env: Sequence[EnvVar] = (), **fields: Any
) -> Template:
    """Return the template of one container of the image *ref*.

    *command* takes the place of the image's arguments; its entrypoint stays.  *fields* are
    ``Template``'s.  Raises TemplateInvalid.
    """
    if fault := reference_fault(ref):
        raise TemplateInvalid(f"image: {fault}")
    parsed = parse_reference(ref)
    path = parsed.path if isinstance(parsed, LayoutReference) else parsed.repository
    name = re.sub(r"[^a-z0-9]+", "-", path.rstrip("/").rpartition("/")[2].lower()).strip("-")[:63]
    name = name.strip("-")
    if not name or name == PAUSE:
        name = "main"
    container = Container(name=name, image=ref, args=tuple(command), env=tuple(env))
    template = Template(name=name, containers=(container,), **fields)
    return template_of_document(template.to_document(), what="run")


def require_pinned(template: Template, what: str = "template") -> None:
    """Raise TemplateInvalid for the first image that is not named by digest."""
    for place, ref in _image_places(template):
        if parse_reference(ref).digest is None:
            raise TemplateInvalid(
                f"{what}: {place}: {quote(ref)} has no digest (--require-pinned)",
                hint=f"lazyfs resolve {what} --write adds the current digests",
                details={"field": place},
            )


def notes_of(template: Template) -> list[str]:
    """Return what the user should know of the references, each said once."""
    parsed = {ref: parse_reference(ref) for ref in template.images.values()}
    return [
        f"{ref}: tag {quote(each.tag)} is ignored because there is a digest"
        for ref, each in parsed.items()
        if each.digest is not None and each.tag is not None
    ]


def with_images(template: Template, images: dict[str, str]) -> Template:
    """Return *template* with other references; container's name → reference."""
    return msgspec.structs.replace(
        template,
        pause_image=images.get(PAUSE, template.pause_image) if template.pause_image else None,
        containers=tuple(
            msgspec.structs.replace(each, image=images.get(each.name, each.image))
            for each in template.containers
        ),
    )


def _image_places(template: Template) -> list[tuple[str, str]]:
    places = [] if template.pause_image is None else [("pauseImage", template.pause_image)]
    return places + [
        (f"containers[{place}].image", container.image)
        for place, container in enumerate(template.containers)
    ]


def _spec_of(document: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the spec of kubernetes' shape, with its name."""
    known = {"apiVersion", "kind", "metadata", "spec", "status"}
    for key in document.keys() - known:
        raise TemplateInvalid(
            f"{what}: {key}: unknown field; known fields: {', '.join(sorted(known))}"
        )
    if document.get("kind") != KIND:
        raise TemplateInvalid(f"{what}: kind: must be {KIND}, not {quote(document.get('kind'))}")
    metadata, spec = document.get("metadata"), document.get("spec")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise TemplateInvalid(f"{what}: metadata.name: missing")
    if not isinstance(spec, dict):
        raise TemplateInvalid(f"{what}: spec: must be an object with fields, not {quote(spec)}")
    if "name" in spec:
        raise TemplateInvalid(f"{what}: spec.name: the name belongs in metadata.name only")
    return {**spec, "name": metadata["name"]}


def _without_nulls(value: Any) -> Any:
    """Return a document without members that are null: not set, as kubernetes reads them."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
    return value

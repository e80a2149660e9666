"""A container's environment: the image's, the template's, and secrets.

Secrets come from the environment of the command or from a file that it names, when a sandbox is
started; no record, journal, template or manifest has them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lazyfs.documents.documents import quote
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.template import Container, SecretKey

PREFIX = "LAZYFS_SECRET_"
SECRETS_LIMIT = 1 << 20  # bytes
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Secrets(Mapping[SecretKey, str]):
    """Values by name and key: from a file first, then ``LAZYFS_SECRET_NAME_KEY``."""

    def __init__(
        self, named: Mapping[tuple[str, str], str] = {}, environment: Mapping[str, str] = {}
    ) -> None:
        self._named = dict(named)
        self._environment = dict(environment)

    def __getitem__(self, key: SecretKey) -> str:
        if (key.name, key.key) in self._named:
            return self._named[key.name, key.key]
        return self._environment[variable_of(key)]

    def __iter__(self) -> Iterator[SecretKey]:
        return (SecretKey(name, key) for name, key in self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        return f"Secrets(of {len(self._named)} in a file)"


def variable_of(key: SecretKey) -> str:
    """Return the variable that may hold a secret: ``LAZYFS_SECRET_NAME_KEY``."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", f"{key.name}_{key.key}".upper())


def load_secrets(path: Path | None, environment: Mapping[str, str]) -> Secrets:
    """Return the secrets of a file (YAML or JSON: name, key, value) and of the environment.

    Raises TemplateInvalid, which shows no value.
    """
    wanted = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    if path is None:
        return Secrets({}, wanted)

    def complain(text: str) -> TemplateInvalid:
        # What YAML's parser quotes could be a value: its place is enough.
        return TemplateInvalid(f"secrets {path}: {text.partition(':')[0]}: cannot be read as YAML")

    try:
        with open(path, "rb") as file:
            data = file.read(SECRETS_LIMIT + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise TemplateInvalid(f"secrets {path}: {reason}") from exc
    if len(data) > SECRETS_LIMIT:
        raise TemplateInvalid(f"secrets {path}: longer than {SECRETS_LIMIT} bytes")
    # Most commands read none.
    from lazyfs.documents.yaml_documents import parse_yaml  # noqa: PLC0415

    document = parse_yaml(text, complain)
    if not isinstance(document, dict):
        raise TemplateInvalid(f"secrets {path}: must have the form NAME: {{KEY: VALUE}}")
    named = {}
    for name, keys in document.items():
        if not isinstance(keys, dict):
            raise TemplateInvalid(f"secrets {path}: {name}: must have the form KEY: VALUE")
        for key, value in keys.items():
            if not isinstance(value, str):
                raise TemplateInvalid(
                    f"secrets {path}: {name}.{key}: must be text, not {type(value).__name__}"
                )
            named[name, key] = value
    return Secrets(named, wanted)


def environment_of(
    container: Container, image_env: Iterable[str], secrets: Mapping[SecretKey, str], home: str
) -> dict[str, str]:
    """Return what a container's process gets; later words win.  Raises TemplateInvalid."""
    variables = {"PATH": DEFAULT_PATH, "HOME": home}
    for line in image_env:
        name, equals, value = line.partition("=")
        if name and equals and "\0" not in line:
            variables[name] = value
    for variable in container.env:
        if variable.value is not None:
            variables[variable.name] = variable.value
            continue
        assert variable.value_from is not None
        key = variable.value_from.secret_key_ref
        try:
            value = secrets[key]
        except KeyError:
            if key.optional:
                continue
            raise TemplateInvalid(
                f"containers.{container.name}.env.{variable.name}: there is no secret"
                f" {quote(key.name)} with key {quote(key.key)}",
                hint=f"set {variable_of(key)}, or name a file with --secrets",
            ) from None
        if "\0" in value:
            raise TemplateInvalid(
                f"containers.{container.name}.env.{variable.name}: the secret contains a NUL "
                "character"
            )
        variables[variable.name] = value
    return variables

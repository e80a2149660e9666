"""``lazyfs verity``: hash trees and digests of files, by root or anybody, without device mapper."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import json_option
from lazyfs.cli.output import print_found
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.cli.images.verity_files import Wanted
    from lazyfs.verity.geometry import Parameters

NO_SALT = "-"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def verity() -> None:
    """Make and check hash trees as dm-verity has them, and digests as fs-verity has them.

    Options are called as veritysetup calls them, and the bytes are the same.
    """


def tree_options(function: Any) -> Any:
    """Add the options that say how a tree is made, and where it is."""
    for option in reversed(
        (
            click.option(
                "--tree",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="File that has the tree; with --hash-offset alone it is in the file itself.",
            ),
            click.option(
                "--data-block-size", type=int, default=4096, show_default=True, metavar="BYTES"
            ),
            click.option(
                "--hash-block-size", type=int, default=4096, show_default=True, metavar="BYTES"
            ),
            click.option(
                "--data-blocks",
                type=click.IntRange(min=1),
                metavar="NUMBER",
                help="How many blocks of data there are.  [default: what the file has]",
            ),
            click.option("--hash", "algorithm", default="sha256", show_default=True),
            click.option("--salt", metavar="HEX|-", help="Salt; - for none."),
            click.option("--format", "hash_type", type=int, default=1, show_default=True),
            click.option(
                "--hash-offset",
                type=click.IntRange(min=0),
                default=0,
                metavar="BYTES",
                help="Where in its file the superblock is, or without one the tree.",
            ),
            click.option("--no-superblock", is_flag=True, help="There is no superblock."),
        )
    ):
        function = option(function)
    return function


@verity.command("format")
@click.argument("file", type=click.Path(path_type=Path))
@tree_options
@click.option("--uuid", "identity", metavar="UUID", help="Of the superblock.  [default: random]")
@json_option
def format_command(
    file: Path,
    tree: Path | None,
    salt: str | None,
    identity: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the hash tree of FILE, and print its root.

    Without --tree and --hash-offset nothing is written.  Without --salt the salt is random.
    """
    from lazyfs.cli.images.verity_files import format_file

    made = format_file(file, tree, _wanted(salt, **options), _uuid(identity))
    document = _document(made.root, made.parameters) | {
        "treeSize": made.tree_size,
        "uuid": None if made.identity is None else str(made.identity),
        "padding": made.padding,
    }
    lines = _lines(document)
    if made.padding:
        size = made.parameters.data_size
        lines.append(
            f"padding          {made.padding} zeros; a kernel wants them in the file: "
            f"truncate -s {size} FILE"
        )
    print_found(document, lines, as_json=as_json)


@verity.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@tree_options
@click.option("--root", required=True, metavar="HEX", help="The root that FILE must have.")
@json_option
def verify_command(
    file: Path, tree: Path | None, salt: str | None, root: str, as_json: bool, **options: Any
) -> None:
    """Check every block of FILE, and of its tree, against a root.

    The root comes from whom you trust; what the superblock says counts only as far as it fits.
    """
    from lazyfs.cli.images.verity_files import verify_file

    wanted = _root(root)
    parameters = verify_file(file, tree, _wanted(salt, **options), wanted)
    document = _document(wanted, parameters)
    print_found(document, [f"{file}: every block is right", *_lines(document)], as_json=as_json)


@verity.command("digest")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--hash", "algorithm", default="sha256", show_default=True)
@click.option("--block-size", type=int, default=4096, show_default=True, metavar="BYTES")
@json_option
def digest_command(file: Path, algorithm: str, block_size: int, as_json: bool) -> None:
    """Print the fs-verity digest of FILE; the filesystem need not know fs-verity."""
    from lazyfs.cli.images.verity_files import file_pieces
    from lazyfs.verity.fsverity import file_digest

    found = file_digest(file_pieces(file), algorithm, block_size)
    document = {"digest": str(found), "blockSize": block_size}
    print_found(document, [f"{found} {file}"], as_json=as_json)


def _wanted(salt: str | None, **options: Any) -> "Wanted":
    from lazyfs.cli.images.verity_files import Wanted

    try:
        parsed = None if salt is None else b"" if salt == NO_SALT else bytes.fromhex(salt)
    except ValueError:
        raise UsageError(f"option --salt: {salt!r} is neither - nor hexadecimal") from None
    return Wanted(
        data_block_size=options["data_block_size"],
        hash_block_size=options["hash_block_size"],
        algorithm=options["algorithm"],
        salt=parsed,
        hash_type=options["hash_type"],
        data_blocks=options["data_blocks"],
        hash_offset=options["hash_offset"],
        has_superblock=not options["no_superblock"],
    )


def _uuid(text: str | None) -> uuid.UUID:
    try:
        return uuid.uuid4() if text is None else uuid.UUID(text)
    except ValueError:
        raise UsageError(f"option --uuid: {text!r} is not a UUID") from None


def _root(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"option --root: {text[:80]!r} is not hexadecimal") from None


def _document(root: bytes, parameters: "Parameters") -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "root": root.hex(),
        "hash": parameters.algorithm,
        "format": parameters.hash_type,
        "salt": parameters.salt.hex(),
        "dataBlockSize": parameters.data_block_size,
        "hashBlockSize": parameters.hash_block_size,
        "dataBlocks": parameters.data_blocks,
    }


def _lines(document: dict[str, Any]) -> list[str]:
    return [
        f"root             {document['root']}",
        f"hash             {document['hash']}, format {document['format']}",
        f"salt             {document['salt'] or '-'}",
        f"data blocks      {document['dataBlocks']} of {document['dataBlockSize']} bytes",
        f"hash block size  {document['hashBlockSize']}",
    ]

"""The ``lazyfs`` command: its commands, its exit codes, and how it reports errors.

Nothing here imports what a command needs: ``lazyfs --version``, ``--help`` and completion work
from the tables below, and a command's module is imported when it runs.
"""

import errno
import gc
import importlib
import json
import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, NoReturn

import click

from lazyfs import __version__
from lazyfs.errors import EXIT_CODES, LazyfsError, StoreError, UsageError
from lazyfs.interrupts import Interrupts
from lazyfs.printable import printable

log = logging.getLogger(__name__)

FAILED = 1
OF_DISKS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOTDIR),
}
INTERRUPTED = 130

# name, which is the function's too → its module below lazyfs.cli, what it does
COMMANDS: dict[str, tuple[str, str]] = {
    "mount": ("mounts.mount", "Mount an image on a directory."),
    "serve": ("mounts.serve", "Run a process that makes later mounts faster."),
    "umount": (
        "mounts.umount",
        "Unmount an image and wait for its server to end.",
    ),
    "status": (
        "mounts.status",
        "Show mounts and sandboxes, and the state of each.",
    ),
    "attrs": (
        "mounts.attrs",
        "Show a mount's attributes: digests, platform, health.",
    ),
    "restart": (
        "mounts.restart",
        "Replace a mount's server process without interrupting readers.",
    ),
    "inspect": ("images.inspect", "Show an image's digests and layers."),
    "resolve": (
        "images.resolve",
        "Show or lock the digests that tags point to.",
    ),
    "ls": ("images.ls", "List a directory of an image, without mounting it."),
    "cat": ("images.cat", "Print a file of an image, without mounting it."),
    "pull": ("images.pull", "Download and verify a whole image."),
    "verify": ("images.verify", "Check every byte of an image."),
    "convert": ("images.convert", "Make an image that can be mounted lazily."),
    "optimize": (
        "images.optimize",
        "Convert an image for what a program reads.",
    ),
    "index": ("images.index", "Make an ordinary image lazy without changing it."),
    "trust": ("images.trust", "Check who signed an image, and the policies that decide."),
    "verity": ("images.verity", "Make and check hash trees of files."),
    "cache": ("cache.cache", "List, measure, check or remove cached images."),
    "profile": (
        "images.profile",
        "Show, export or import which files are read first.",
    ),
    "run": ("sandboxes.run", "Run a sandbox on lazily mounted images."),
    "checkpoint": (
        "snapshots.checkpoint",
        "Save a running sandbox as a snapshot.",
    ),
    "restore": ("snapshots.restore", "Resume a snapshot as a new sandbox."),
    "recover": (
        "sandboxes.recover",
        "Finish or roll back commands that a crash interrupted.",
    ),
    "delete": (
        "sandboxes.delete",
        "Remove a sandbox and everything that belongs to it.",
    ),
    "golden": (
        "snapshots.golden",
        "Build and clone snapshots to start sandboxes from.",
    ),
    "snapshot": (
        "snapshots.snapshot",
        "List, check, copy or remove snapshots.",
    ),
    "gc": ("snapshots.gc", "Remove unfinished snapshots from a store."),
    "doctor": (
        "mounts.doctor",
        "Show what works on this machine and what is missing.",
    ),
}


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for *error*: its own, where it is one of a snapshot's reasons."""
    own = getattr(error, "exit_code", None)
    if isinstance(error, LazyfsError) and isinstance(own, int):
        return own
    for family, code in EXIT_CODES:
        if isinstance(error, family):
            return code
    return FAILED


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, and which reports errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lazyfs.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' one-line descriptions, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list["click.shell_completion.CompletionItem"]:
        """Complete names of commands and options of this group."""
        names = [
            click.shell_completion.CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; exit with its code, and say on standard error why it failed."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        words = list(sys.argv[1:] if args is None else args)
        sys.exit(self._run(words, prog_name, complete_var, extra))

    def _run(
        self,
        words: list[str],
        prog_name: str | None,
        complete_var: str | None,
        extra: MutableMapping[str, Any],
    ) -> int:
        as_json = "--json" in words
        is_verbose = any(w in ("-v", "-vv", "-vvv", "--verbose") for w in words)
        try:
            result = super().main(words, prog_name, complete_var, False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except click.exceptions.Exit as exit_:
            return exit_.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            for line in error.format_message().splitlines():
                click.echo(printable(line), err=True)
            return exit_code_of(UsageError(""))
        except click.UsageError as error:
            context = None if error.ctx is None else error.ctx.get_usage()
            complain(UsageError(error.format_message()), as_json=as_json, before=context)
            return exit_code_of(UsageError(""))
        except click.ClickException as error:
            complain(UsageError(error.format_message()), as_json=as_json)
            return exit_code_of(UsageError(""))
        except LazyfsError as error:
            complain(error, as_json=as_json)
            return exit_code_of(error)
        except (KeyboardInterrupt, click.Abort):
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has left; what Python would flush at exit has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except BaseExceptionGroup as group:
            if group.split(KeyboardInterrupt)[1] is None:  # Ctrl-C below a nursery
                return INTERRUPTED
            return self._bug(group, as_json=as_json, is_verbose=is_verbose)
        except Exception as error:
            return self._bug(error, as_json=as_json, is_verbose=is_verbose)

    @staticmethod
    def _bug(error: BaseException, *, as_json: bool, is_verbose: bool) -> int:
        complain(error, as_json=as_json)
        if is_verbose:
            sys.excepthook(type(error), error, error.__traceback__)
        return FAILED


def complain(error: BaseException, *, as_json: bool, before: str | None = None) -> None:
    """Write *error* to standard error: as text, or as one JSON object."""
    if isinstance(error, LazyfsError):
        code, message, hint = error.code, error.message, error.hint
    elif isinstance(error, OSError) and error.errno in OF_DISKS:
        code, hint = StoreError.code, None  # a disk's trouble is no bug
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    else:
        code, hint = "E_BUG", "this is a bug in lazyfs: report it with the traceback that -v prints"
        message = f"{type(error).__name__}: {error}"
    if as_json:
        document = {
            "type": "error",
            "code": code,
            "message": message,
            "hint": hint,
            "exitCode": exit_code_of(error),
        }
        if details := getattr(error, "details", None):
            document["details"] = details
        print(json.dumps(document), file=sys.stderr)
        return
    if before is not None:
        print(before, file=sys.stderr)
    print(f"lazyfs: {printable(message)}", file=sys.stderr)
    if hint is not None:
        print(f"hint: {printable(hint)}", file=sys.stderr)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="lazyfs %(version)s")
@click.option("-v", "--verbose", count=True, help="Print more; give it twice for debug output.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The format of messages on standard error.",
)
@click.pass_context
def cli(ctx: click.Context, verbose: int, quiet: bool, log_format: str) -> None:
    """Mount OCI images lazily and verify every byte."""
    from lazyfs.cli.log import set_up_logging

    if ctx.invoked_subcommand != "mount":  # whose server turns it on
        gc.freeze()  # what is here stays
        gc.enable()
    given = {"verbosity": -1 if quiet else verbose, "log_json": log_format == "json"}
    ctx.obj = (ctx.obj or {}) | given
    set_up_logging(ctx.obj["verbosity"], as_json=ctx.obj["log_json"])
    if ctx.obj.get("alone"):
        log.debug("not using lazyfs serve: %s", ctx.obj["alone"])


def main(words: Sequence[str] | None = None, alone: str = "") -> NoReturn:
    """Run a command line, and leave at once; *alone* is why no service does it."""
    interrupts = Interrupts()
    code = 0
    try:
        interrupts.install()
        cli.main(words, prog_name="lazyfs", obj={"alone": alone})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:  # when all was done
        code = INTERRUPTED
    if code == INTERRUPTED:
        interrupts.end()
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process.  Taking all modules apart first would cost a mount 20 ms."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = code or FAILED
    os._exit(code)

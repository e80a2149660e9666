"""Shell scripts that play runtimes' programs: what they print, and what they are called with."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

GLOBAL_FLAGS = ("root", "log", "log-format", "network", "overlay2", "ignore-cgroups", "rootless")
PLATFORM_TEXT = 'specifies which platform to use: {words}. (default "{first}")'
OVERLAY_TEXT = "medium can be 'memory', 'self' or 'dir=/abs/dir/path'"

SCRIPT = r"""#!/bin/sh
folder={folder}
printf '%s\n' "$*" >>"$folder/calls"
log=
while [ $# -gt 0 ]; do
    case "$1" in
        --version) cat "$folder/version"; exit 0 ;;
        --log=*) log=${{1#--log=}}; shift ;;
        -*) shift ;;
        *) break ;;
    esac
done
command=$1
[ $# -gt 0 ] && shift
case "$command" in
    flags) cat "$folder/flags" >&2; exit 0 ;;
    help) cat "$folder/help-$1" 2>/dev/null || cat "$folder/help"; exit 0 ;;
esac
[ -e "$folder/log-$command" ] && cat "$folder/log-$command" >>"$log"
[ -e "$folder/sleep-$command" ] && sleep "$(cat "$folder/sleep-$command")"
[ -e "$folder/out-$command" ] && cat "$folder/out-$command"
[ -e "$folder/err-$command" ] && cat "$folder/err-$command" >&2
[ -e "$folder/status-$command" ] && exit "$(cat "$folder/status-$command")"
exit 0
"""


def flags_text(names: dict[str, str]) -> str:
    """Return what Go's flag package prints for flags with their descriptions."""
    return "".join(f"  -{name} value\n    \t{text}\n" for name, text in names.items())


@dataclass
class FakeRunsc:
    """A script below *folder* that answers as runsc does; ``calls()`` is what it was asked."""

    folder: Path
    version: str = "runsc version release-20990101.0\nspec: 1.1.0\n"
    flags: tuple[str, ...] = ("directfs",)
    checkpoint_flags: tuple[str, ...] = ("compression", "image-path")
    restore_flags: tuple[str, ...] = ("detach", "direct", "image-path")
    wait_flags: tuple[str, ...] = ("pid",)
    platforms: tuple[str, ...] = ("systrap", "ptrace", "kvm")
    subcommands: tuple[str, ...] = ("checkpoint", "restore", "run", "wait")
    can_subcontainers: bool = True

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        script = SCRIPT.format(folder=shlex.quote(str(self.folder)))
        if self.can_subcontainers:
            script += "# containerManager.RestoreSubcontainer\n"
        self.path.write_text(script)
        self.path.chmod(0o755)
        known = dict.fromkeys((*GLOBAL_FLAGS, *self.flags), "something") | {
            "overlay2": OVERLAY_TEXT
        }
        platform = PLATFORM_TEXT.format(words=", ".join(self.platforms), first=self.platforms[0])
        text = f"{flags_text(known)}  -platform string\n    \t{platform}\n  -strace\n    \tmore\n"
        self.say("version", self.version)
        self.say("flags", text)
        self.say("help", "Subcommands:\n" + "".join(f"\t{w}   does it\n" for w in self.subcommands))
        for command in ("checkpoint", "restore", "wait"):
            names = getattr(self, f"{command}_flags")
            self.say(
                f"help-{command}", f"{command} [flags]\n" + flags_text(dict.fromkeys(names, "x"))
            )

    @property
    def path(self) -> Path:
        return self.folder / "runsc"

    def say(self, name: str, text: str) -> None:
        """Set an answer: ``out-COMMAND``, ``err-COMMAND``, ``status-COMMAND``, ``log-COMMAND``."""
        (self.folder / name).write_text(text)

    def fail(self, command: str, *messages: str) -> None:
        """Have a command fail, with messages in its JSON log."""
        entries = [json.dumps({"msg": text, "level": "error"}) for text in messages]
        self.say(f"log-{command}", "".join(entries))
        self.say(f"status-{command}", "128")

    def calls(self) -> list[str]:
        """Return what it was called with, but for questions of what it is."""
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if not line.startswith(("--version", "flags", "help"))]

    def questions(self) -> int:
        """Return how often it was asked what it is."""
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum(line.startswith("--version") for line in lines)

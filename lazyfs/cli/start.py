"""Where the command begins.  Imports nothing before it knows whether ``lazyfs serve`` works for it.

``lazyfs mount`` hands its words to ``lazyfs serve`` where that runs; then starting an interpreter
is all that this process has to do.  Doubtful cases are left to whoever parses the words.
"""

import gc
import os
import sys

from lazyfs.cli.directories import runtime_directory
from lazyfs.environment import harden
from lazyfs.service.processes.handover import Lost, TurnedAway, hand_over
from lazyfs.service.processes.standing import process_start

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 130
ALONE = {"--no-service", "-f", "--foreground"}
UNWANTED = {"0", "false", "f", "no", "n", "off"}  # values of LAZYFS_SERVICE, as click takes them
CREDENTIALS = "--creds"


def main() -> "NoReturn":
    """Run the command line, by the service or here, and leave."""
    gc.disable()  # there is no garbage yet, and looking for it would be a tenth of a mount
    harden(os.environ)
    words, reason = sys.argv[1:], ""
    is_wanted = os.environ.get("LAZYFS_SERVICE", "").lower() not in UNWANTED
    if "mount" in words and is_wanted and not ALONE.intersection(words):
        try:
            if any(word.startswith(CREDENTIALS) for word in words):
                from lazyfs.cli.access import with_password

                words = with_password(words)
            reason = _have_done(words)
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)
    from lazyfs.cli.main import main as work_alone

    work_alone(words, reason)


def _have_done(words: list[str]) -> str:
    """Have the service do what *words* say, and leave; return why it does not."""
    try:
        folder = runtime_directory(os.environ, os.geteuid())
        code = hand_over(folder, words, os.environ, process_start())
    except (OSError, TurnedAway) as error:
        return str(error)
    except Lost as error:
        from lazyfs.cli.main import complain, exit_code_of
        from lazyfs.service.processes.failures import ServerLost

        lost = ServerLost(str(error))
        complain(lost, as_json="--json" in words)
        code = exit_code_of(lost)
    os._exit(code)

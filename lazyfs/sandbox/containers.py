"""The containers of a sandbox on their mounts: their specs, and when they are ready."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import NotReady, RuntimeFailed
from lazyfs.documents.journal import JournalContainer
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.record import RecordedImage, mounted_image
from lazyfs.documents.security import Security, openings
from lazyfs.documents.template import Readyz, SecretKey, Template
from lazyfs.sandbox.bases import MOUNT_ID, Base, Bases, Mounts, check_mounted
from lazyfs.sandbox.runtimes.runtime import ContainerState, Runtime
from lazyfs.sandbox.sandbox import Sandbox
from lazyfs.sandbox.specs.confinement import check_confinement
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.specs.spec import Rootless, build_spec
from lazyfs.sandbox.threads import Threads, wait_all
from lazyfs.store.content.regular import open_regular

LINKS = 40  # that a path may lead through, as the kernel has it
FILE_LIMIT = 1 << 20  # bytes of a file that is looked up
RESOLV_CONF = Path("/etc/resolv.conf")
POLL_SECONDS = 0.05
ASK_SECONDS = 2.0
VOLUMES = "volumes"
Say = Callable[[str], None]


def build_specs(
    sandbox: Sandbox,
    plan: SandboxPlan,
    template: Template,
    configs: Mapping[str, Mapping[str, Any]],
    runtime_name: str,
    *,
    secrets: Mapping[SecretKey, str] | None = None,
    rootless: Rootless | None = None,
) -> dict[str, dict[str, Any]]:
    """Return each container's config.json, by its name; images are mounted by then.

    *configs* are the images' config documents.  Durable directories are made in the sandbox's
    folder, where they are not there.  Raises TemplateInvalid.
    """
    volumes = durable_volumes(sandbox, template)
    return {
        container.name: build_spec(
            container,
            configs[container.name],
            template,
            is_root=container.name == plan.root.name,
            sandbox_id=plan.root.container_id,
            runtime_name=runtime_name,
            lookup=Inside(sandbox.rootfs(container.name)).read,
            secrets=secrets,
            volumes=volumes,
            rootless=rootless,
            network=plan.network,
            resolv_conf=RESOLV_CONF if RESOLV_CONF.exists() else None,
        )
        for container in template.all_containers
    }


def durable_volumes(sandbox: Sandbox, template: Template) -> dict[str, Path]:
    """Make the durable directories of a template; return where they are, by name."""
    places = {}
    for volume in template.volumes:
        if volume.durable_dir is not None:
            place = sandbox.folder / VOLUMES / volume.name
            with local_errors(place, "make"):
                place.mkdir(mode=0o755, parents=True, exist_ok=True)
            places[volume.name] = place
    return places


class Inside:
    """Files below *root*, whose links lead nowhere else: an image is not trusted with the host."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Return a regular file's content, None where there is none."""
        found = self._resolve(path)
        if found is None:
            return None
        try:
            file = open_regular(found)
        except OSError:
            return None
        with BufferedReader(file) as reader:  # reads on where a read ends early
            return reader.read(FILE_LIMIT)

    def _resolve(self, path: str) -> Path | None:
        waiting = [word for word in reversed(path.split("/")) if word not in ("", ".")]
        place: list[str] = []
        links = 0
        while waiting:
            word = waiting.pop()
            if word == "..":
                del place[-1:]
                continue
            try:
                target = os.readlink(self._root.joinpath(*place, word))
            except OSError:
                place.append(word)
                continue
            links += 1
            if links > LINKS:
                return None
            if target.startswith("/"):
                place = []
            waiting += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        return self._root.joinpath(*place)


def journal_containers(sandbox: Sandbox, template: Template) -> tuple[JournalContainer, ...]:
    """Return the containers of a template as the journal of *sandbox* names them."""
    return tuple(
        JournalContainer(each.name, sandbox.container_id(each.name))
        for each in template.all_containers
    )


def confine(
    security: Security, plan: SandboxPlan, runtime_name: str, say: Say, *, is_rootless: bool
) -> None:
    """Say what of the confinement is turned off; raise Unsupported for what cannot be had."""
    if opened := openings(security):
        say(f"confinement turned off: {', '.join(opened)}")
    check_confinement(security, plan, runtime_name, is_rootless=is_rootless)


def mount_all(sandbox: Sandbox, wanted: Iterable[Base], bases: Bases) -> tuple[RecordedImage, ...]:
    """Mount images side by side; return, when all are mounted or failed, what the mounts are.

    An interrupt ends those that are in the making.  Raises BaseDrift, and what ``mount`` raises.
    """
    wanted = tuple(wanted)
    with Threads(len(wanted), bases.give_up) as pool:
        waiting = [pool.submit(mount_one, sandbox, each, bases) for each in wanted]
        wait_all(waiting)
    return tuple(each.result() for each in waiting)


def mount_one(sandbox: Sandbox, base: Base, bases: Bases) -> RecordedImage:
    """Mount the image of a container, and compare what the mount says with what was meant."""
    image = base.image
    rootfs = sandbox.rootfs(image.name)
    with local_errors(rootfs, "make"):
        rootfs.mkdir(mode=0o755, parents=True)
    bases.mount(base, rootfs)
    attributes = bases.identity(rootfs)
    check_mounted(image, mounted_image(image, attributes))
    return RecordedImage(image, attributes[MOUNT_ID], str(rootfs))


def wait_ready(template: Template, runtime: Runtime, plan: SandboxPlan) -> None:
    """Wait until all containers run and those that say when they are ready are.  Raises NotReady.

    A readiness request can be made where the sandbox shares the machine's network only; elsewhere
    a container is ready when it runs.
    """
    _check_running(runtime, plan)
    if plan.network != "host":
        return
    for container in template.all_containers:
        if container.readyz is not None:
            _wait_answer(container.name, container.readyz, runtime, plan)


def _check_running(runtime: Runtime, plan: SandboxPlan) -> None:
    states = runtime.states(plan)
    for container in plan.containers:
        state = states.get(container.name, ContainerState.ABSENT)
        if state is not ContainerState.RUNNING:
            raise NotReady(
                f"container {container.name} is {state}, not running",
                hint=f"its output is in {plan.log_dir}",
                details={"container": container.name, "state": str(state)},
            )


def _wait_answer(name: str, readyz: Readyz, runtime: Runtime, plan: SandboxPlan) -> None:
    import urllib.error  # noqa: PLC0415 - and with it http and email: few wait for an answer
    import urllib.request  # noqa: PLC0415

    url = f"http://127.0.0.1:{readyz.http_get.port}{readyz.http_get.path}"
    deadline = time.monotonic() + readyz.timeout_seconds
    said = "no answer"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=ASK_SECONDS) as answer:
                if 200 <= answer.status < 400:
                    return
                said = str(answer.status)
        except urllib.error.HTTPError as exc:
            said = str(exc.code)
        except OSError as exc:
            said = str(exc)
        try:
            _check_running(runtime, plan)
        except RuntimeFailed as exc:
            said = exc.message
        time.sleep(POLL_SECONDS)
    raise NotReady(
        f"container {name} was not ready after {readyz.timeout_seconds} s: {url}: {said}",
        hint=f"its output is in {plan.log_dir}",
        details={"container": name, "url": url},
    )


def end(sandbox: Sandbox, plan: SandboxPlan, runtime: Runtime, mounts: Mounts) -> None:
    """Kill what runs of a sandbox and release its mounts; nothing to do where nothing is."""
    runtime.delete(plan)
    for container in plan.containers:
        mounts.unmount(sandbox.rootfs(container.name))

"""A process that holds memory, as an image and as a folder of files."""

import shutil
import subprocess
from pathlib import Path

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes


def make_holder(folder: Path) -> Path:
    """Make the image of a process that holds memory, a layout in *folder*; return it as files."""
    folder.mkdir()
    holder = folder / "holder"
    source = Path(__file__).with_name("holder.c")
    subprocess.run(["cc", "-O2", "-static", "-o", holder, source], check=True, timeout=60)
    names = ("bin", "dev", "etc", "proc", "sys", "tmp")
    items = [directory(name) for name in names]
    items.append(file("bin/holder", holder.read_bytes(), mode=0o755))
    make_layout(folder / "layout", [estargz_layer(tar_bytes(items))])
    rootfs = folder / "rootfs"
    for name in names:
        (rootfs / name).mkdir(parents=True)
    shutil.copy(holder, rootfs / "bin")
    return rootfs

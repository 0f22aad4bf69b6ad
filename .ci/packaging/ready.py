#!/usr/bin/env python3
"""How long it takes from a package to `tunnel ready`, by channel: unpacking or installing it, and the demo's tunnels.

    .ci/packaging/ready.py [FOLDER]     with the packages of `.ci/package`, by default those in target/dist

What a download takes comes on top: sizes are in the table. Prints the medians of five runs, in seconds.
"""

import contextlib
import pathlib
import shutil
import statistics
import sys
import tarfile
import time

# Nothing is to appear between the sources.
sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import tried
from common import NAME, ROOT, VERSION, folder, run

RUNS = 5
DEMO = ("demo", "--", "true")


@contextlib.contextmanager
def archive(path):
    with folder() as base:
        yield lambda: tar(path, base), lambda: tried.clean(base, base / path.name.removesuffix(".tar.gz") / NAME, *DEMO)


def tar(path, base):
    with tarfile.open(path) as opened:
        opened.extractall(base, filter="data")


@contextlib.contextmanager
def deb(path):
    with folder() as base:
        root = base / "root"
        run("mmdebstrap", "--quiet", "--variant=essential", "bookworm", root, quiet=True)
        shutil.copy(path, root / "tmp")
        install = ("dpkg", "--install", f"/tmp/{path.name}")
        yield lambda: tried.inside(root, *install), lambda: tried.inside(root, NAME, *DEMO)


@contextlib.contextmanager
def wheel(path):
    with folder() as base:
        run("python3", "-m", "venv", base / "venv")
        install = (base / "venv/bin/pip", "install", "--quiet", "--no-index", path)
        yield lambda: run(*install), lambda: tried.clean(base, base / "venv/bin" / NAME, *DEMO)


@contextlib.contextmanager
def npm(platform):
    main = platform.with_name(f"{NAME}-{VERSION}.tgz")
    with folder() as base:
        options = ("--silent", "--offline", "--no-audit", "--no-fund", "--prefix", base)
        install = ("npm", "install", *options, platform, main)
        start = ("npx", "--offline", NAME, *DEMO)
        yield lambda: run(*install, cwd=base, quiet=True), lambda: tried.clean(base, *start)


CHANNELS = {
    f"{NAME}-{VERSION}-x86_64-unknown-linux-musl.tar.gz": archive,
    f"{NAME}_{VERSION}_amd64.deb": deb,
    f"{NAME.replace('-', '_')}-{VERSION}-py3-none-manylinux2014_x86_64.musllinux_1_1_x86_64.whl": wheel,
    f"{NAME}-linux-x64-{VERSION}.tgz": npm,
}


def measure(path, channel):
    """Seconds that installing takes, and the demo after it."""
    with channel(path) as steps:
        times = []
        for step in steps:
            started = time.monotonic()
            step()
            times.append(time.monotonic() - started)
        return times


def main():
    dist = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/dist").resolve()
    print(f"{'package':<80} install  ready  together")
    for name, channel in CHANNELS.items():
        runs = [measure(dist / name, channel) for _ in range(RUNS)]
        installed, ready = (statistics.median(times) for times in zip(*runs))
        together = statistics.median(sum(times) for times in runs)
        print(f"{name:<80} {installed:7.2f}  {ready:5.2f}  {together:8.2f}")


if __name__ == "__main__":
    main()

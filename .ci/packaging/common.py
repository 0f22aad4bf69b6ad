"""What all parts of `.ci/package` share: the version, files that are the same each time, and what has been made."""

import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import tarfile
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "target/ci"
NAME = "autoheal-pa"
SUMMARY = "Makes private EKS clusters reachable for kubectl through SSM Session Manager"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]

# As Rust, Debian, RPM, OCI, Python's wheels and npm call a machine.
TARGETS = {
    "x86_64-unknown-linux-musl": {
        "deb": "amd64",
        "rpm": "x86_64",
        "oci": "amd64",
        "wheel": "manylinux2014_x86_64.musllinux_1_1_x86_64",
        "npm": "x64",
    },
    "aarch64-unknown-linux-musl": {
        "deb": "arm64",
        "rpm": "aarch64",
        "oci": "arm64",
        "wheel": "manylinux2014_aarch64.musllinux_1_1_aarch64",
        "npm": "arm64",
    },
}


class Problem(Exception):
    """What ends the run, as a sentence for whoever started it."""


def run(*command, cwd=ROOT, env=None, stdin=None, quiet=False):
    """Runs a program and returns what it prints; ends the run if it fails."""
    command = [str(part) for part in command]
    full = {**os.environ, **{name: str(value) for name, value in (env or {}).items()}}
    stderr = subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=cwd, env=full, input=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)
    if done.returncode != 0:
        said = f"\n{done.stdout}{done.stderr or ''}".rstrip()
        raise Problem(f"`{' '.join(command)}` failed with status {done.returncode}{said}")
    return done.stdout


@contextlib.contextmanager
def folder():
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as path:
        yield pathlib.Path(path)


def epoch():
    """The time of all files: that of the commit, unless SOURCE_DATE_EPOCH says another one."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    return int(said) if said else int(run("git", "log", "-1", "--format=%ct"))


def tar(entries):
    """A tar archive of (name, mode, bytes or None for a folder), which depends on nothing else."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode, content in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, epoch()
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def gz(content):
    """Compressed without a name or a time."""
    return gzip.compress(content, 9, mtime=0)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def size(number):
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


class Made:
    """What has been made, and how it was tried."""

    def __init__(self, out):
        self.out = out
        self.files = {}

    def write(self, name, content):
        path = self.out / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.add(path)

    def add(self, path):
        self.files.setdefault(path.name, "not tried")
        return path

    def tried(self, path, how):
        self.files[path.name] = how

    def table(self):
        rows = [("artefact", "size", "tried")]
        rows += [(name, size((self.out / name).stat().st_size), how) for name, how in sorted(self.files.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{name:<{widths[0]}}  {length:>{widths[1]}}  {how}" for name, length, how in rows)

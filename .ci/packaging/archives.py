"""Archives of the program with all that goes with it."""

from common import NAME, ROOT, VERSION, gz, tar


def write(made, target, binary, papers):
    """Writes the archive of a target."""
    top = f"{NAME}-{VERSION}-{target}"
    files = {
        NAME: (0o755, binary.read_bytes()),
        "README.md": (0o644, (ROOT / "README.md").read_bytes()),
        "LICENSE": (0o644, (ROOT / "LICENSE").read_bytes()),
        "CHANGELOG.md": (0o644, papers["changes"]),
        "THIRD-PARTY-LICENSES.txt": (0o644, papers["licences"]),
        f"{NAME}.cdx.json": (0o644, papers["sbom"]),
        f"{NAME}.service": (0o644, (ROOT / "examples/autoheal-pa.service").read_bytes()),
    }
    files |= {f"man/{name}": (0o644, page) for name, page in papers["manual"].items()}
    files |= {f"completions/{name}": (0o644, script) for name, script in papers["completions"].items()}
    folders = [(f"{top}{folder}", 0o755, None) for folder in ("", "/completions", "/man")]
    entries = folders + [(f"{top}/{name}", mode, content) for name, (mode, content) in sorted(files.items())]
    return made.write(f"{top}.tar.gz", gz(tar(entries)))

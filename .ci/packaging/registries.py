"""Wheels for PyPI and packages for npm, with the binary inside: nothing is downloaded when they are installed or run."""

import json
import pathlib
import tempfile

from common import NAME, ROOT, SUMMARY, TARGETS, VERSION, epoch, gz, run, tar
from toolchain import PYTHON

SHIM = """#!/usr/bin/env node
// Runs the program of this machine's package, which npm has installed beside this one.
"use strict";

const { spawn } = require("node:child_process");
const os = require("node:os");

const name = `NAME-${process.platform}-${process.arch}`;
let program;
try {
  program = require.resolve(`${name}/bin/NAME`);
} catch {
  console.error(
    `error: the package ${name} is not installed: either there is none for this machine, as for all but Linux on x64 and arm64, ` +
      "or npm was told to leave out optional packages\\nhint: install without `--omit=optional`",
  );
  process.exit(1);
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"]) {
  // From a terminal it has had the signal itself, and knows that it is the same one by when it comes.
  process.on(signal, () => process.stdin.isTTY && signal !== "SIGTERM" ? undefined : child.kill(signal));
}
child.on("error", (error) => {
  console.error(`error: cannot run ${program}: ${error.message}`);
  process.exit(1);
});
child.on("exit", (code, signal) => process.exit(signal ? 128 + os.constants.signals[signal] : code));
"""


def wheel(made, target, binary, papers):
    """Writes the wheel of a target."""
    tag = TARGETS[target]["wheel"]
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder) / f"autoheal_pa-{VERSION}"
        info, scripts = base / f"autoheal_pa-{VERSION}.dist-info", base / f"autoheal_pa-{VERSION}.data/scripts"
        (info / "licenses").mkdir(parents=True)
        scripts.mkdir(parents=True)
        (scripts / NAME).write_bytes(binary.read_bytes())
        (scripts / NAME).chmod(0o755)
        metadata = [
            "Metadata-Version: 2.4",
            f"Name: {NAME}",
            f"Version: {VERSION}",
            f"Summary: {SUMMARY}",
            "License-Expression: Apache-2.0",
            "License-File: LICENSE",
            "License-File: THIRD-PARTY-LICENSES.txt",
            "Requires-Python: >=3.8",
            "Description-Content-Type: text/markdown",
        ]
        (info / "METADATA").write_text("\n".join(metadata) + "\n\n" + (ROOT / "README.md").read_text())
        (info / "licenses/LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
        (info / "licenses/THIRD-PARTY-LICENSES.txt").write_bytes(papers["licences"])
        tags = "".join(f"Tag: py3-none-{platform}\n" for platform in tag.split("."))
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: false\n{tags}")
        environment = {"SOURCE_DATE_EPOCH": epoch(), "PYTHONPATH": PYTHON}
        run("python3", "-m", "wheel", "pack", "--dest-dir", made.out, base, env=environment)
    return made.add(made.out / f"autoheal_pa-{VERSION}-py3-none-{tag}.whl")


def npm(made, binaries, papers):
    """Writes the package of each target, and the one that takes the right one of them."""
    common = {"version": VERSION, "description": SUMMARY, "license": "Apache-2.0"}
    licences = {"LICENSE": (ROOT / "LICENSE").read_bytes(), "THIRD-PARTY-LICENSES.txt": papers["licences"]}
    names = []
    for target, binary in binaries.items():
        cpu = TARGETS[target]["npm"]
        name = f"{NAME}-linux-{cpu}"
        package = {"name": name, **common, "os": ["linux"], "cpu": [cpu]}
        names.append(name)
        pack(made, package, {**licences, f"bin/{NAME}": binary.read_bytes()})
    package = {
        "name": NAME,
        **common,
        "bin": {NAME: "bin/run.js"},
        "engines": {"node": ">=16"},
        "optionalDependencies": {name: VERSION for name in names},
    }
    readme = (ROOT / "README.md").read_bytes()
    return pack(
        made,
        package,
        {"LICENSE": licences["LICENSE"], "README.md": readme, "bin/run.js": SHIM.replace("NAME", NAME).encode()},
    )


def pack(made, package, files):
    """Writes what `npm pack` would, without asking anything of this machine."""
    files = {**files, "package.json": json.dumps(package, indent=2).encode() + b"\n"}
    entries = [
        (f"package/{name}", 0o755 if name.startswith("bin/") else 0o644, content)
        for name, content in sorted(files.items())
    ]
    return made.write(f"{package['name']}-{VERSION}.tgz", gz(tar(entries)))

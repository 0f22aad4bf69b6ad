"""A container image from scratch, as an OCI layout in a tar file: the binary, certificate authorities, and a user who is nobody."""

import datetime
import json

from common import NAME, TARGETS, VERSION, epoch, gz, sha256, tar
from toolchain import PYTHON

CREATED = datetime.datetime.fromtimestamp(epoch(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
USER = 65532
CONFIG = {
    "User": f"{USER}:{USER}",
    "Env": [
        "PATH=/usr/bin",
        "HOME=/home/nobody",
        "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
        "XDG_RUNTIME_DIR=/run/autoheal-pa",
    ],
    "Entrypoint": [f"/usr/bin/{NAME}"],
    "Cmd": ["up", "--kubeconfig", "/run/autoheal-pa/kubeconfig"],
    "WorkingDir": "/",
}


def write(made, binaries):
    """Writes the image of all targets."""
    blobs, images = {}, []

    def blob(content, media, **more):
        digest = sha256(content)
        blobs[digest] = content
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digest}",
            "size": len(content),
            **more,
        }

    for target, binary in binaries.items():
        layer = tar(root(binary))
        machine = {"architecture": TARGETS[target]["oci"], "os": "linux"}
        config = {
            "created": CREATED,
            **machine,
            "config": CONFIG,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}"]},
            "history": [{"created": CREATED, "comment": f"{NAME} {VERSION}"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(as_json(config), "config.v1+json"),
            "layers": [blob(gz(layer), "layer.v1.tar+gzip")],
        }
        images.append(blob(as_json(manifest), "manifest.v1+json", platform=machine))
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": images}
    name = {"org.opencontainers.image.ref.name": VERSION}
    top = {**index, "manifests": [blob(as_json(index), "index.v1+json", annotations=name)]}
    entries = [("blobs", 0o755, None), ("blobs/sha256", 0o755, None)]
    entries += [(f"blobs/sha256/{digest}", 0o644, content) for digest, content in sorted(blobs.items())]
    entries += [("index.json", 0o644, as_json(top)), ("oci-layout", 0o644, b'{"imageLayoutVersion":"1.0.0"}')]
    return made.write(f"{NAME}-{VERSION}-oci.tar", tar(entries))


def root(binary):
    """All files of the image."""
    authorities = (PYTHON / "certifi/cacert.pem").read_bytes()
    folders = [
        "dev",
        "etc",
        "etc/ssl",
        "etc/ssl/certs",
        "home",
        "home/nobody",
        "proc",
        "run",
        "run/autoheal-pa",
        "tmp",
        "usr",
        "usr/bin",
    ]
    entries = [(folder, 0o1777 if folder == "tmp" else 0o755, None) for folder in folders]
    passwd = f"nobody:x:{USER}:{USER}:nobody:/home/nobody:/\n".encode()
    return entries + [
        ("etc/passwd", 0o644, passwd),
        ("etc/group", 0o644, f"nobody:x:{USER}:\n".encode()),
        ("etc/ssl/certs/ca-certificates.crt", 0o644, authorities),
        (f"usr/bin/{NAME}", 0o755, binary.read_bytes()),
    ]


def as_json(value):
    return json.dumps(value, separators=(",", ":")).encode()

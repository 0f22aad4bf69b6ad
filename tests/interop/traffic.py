#!/usr/bin/env python3
"""Sends traffic through a session of any gateway and any client, and says how long it took.

    traffic.py GATEWAY --forward target/release/examples/forward [-- FLAG...]
    traffic.py GATEWAY --plugin session-manager-plugin           [-- FLAG...]
    traffic.py --client HOST:PORT --destination PORT

GATEWAY is Systems Manager with its message gateway, and an agent behind it: HOST:PORT where it answers, or the path of a
program that prints this as its first line and runs until it is terminated; what comes behind `--` is for the program. The
agent has to be able to connect to this machine. A client that listens already, and leads to PORT of this machine, is given
by its address. Keys and a region are those of the environment, if there are any. Every byte is compared. Exits with 1 if
anything has failed.
"""

import argparse
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

TARGET = "i-0dc03fbcae2a87472"
MIB = 1 << 20
# Seconds without a byte after which a transfer has failed.
PATIENCE = 40
DATA = random.Random(1).randbytes(MIB)


def data(length):
    return (DATA * (length // len(DATA) + 1))[:length]


def read(connection, length):
    parts = []
    while length:
        part = connection.recv(min(length, 65536))
        if not part:
            raise EOFError(f"{length} bytes are missing")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def serve(connection):
    """Answers `D` and a length with as many bytes, `U`, a length and as many bytes with their digest."""
    try:
        while True:
            kind, length = struct.unpack(">cQ", read(connection, 9))
            if kind == b"D":
                connection.sendall(data(length))
            else:
                connection.sendall(hashlib.sha256(read(connection, length)).digest())
    except (EOFError, OSError):
        connection.close()


def start_destination(port):
    listener = socket.create_server(("127.0.0.1", port), backlog=128)

    def accept():
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def start_gateway(given, flags):
    """Returns the address of a gateway, and its process if it was given as a program."""
    if not os.path.exists(given):
        return given, None
    process = subprocess.Popen([given, *flags], stdout=subprocess.PIPE, text=True)
    return process.stdout.readline().strip(), process


def surroundings():
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
    return {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"} | keys | dict(os.environ)


def end(process):
    if process:
        process.terminate()
        process.wait()


def start_forward(program, gateway, destination):
    """Starts this project's example, and returns its process and its local port."""
    environment = surroundings() | {"AWS_ENDPOINT_URL_SSM": f"http://{gateway}"}
    command = [program, "--target", TARGET, "--host", "127.0.0.1", "--port", str(destination)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    port = int(process.stderr.readline().rsplit(":", 1)[1])
    threading.Thread(target=process.stderr.read, daemon=True).start()
    if "ready" not in process.stdout.readline():
        sys.exit("the tunnel is not ready")
    return process, port


def start_plugin(program, gateway, destination):
    """Starts a session as the AWS CLI does, and returns the plugin's process and its local port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    parameters = {"host": ["127.0.0.1"], "portNumber": [str(destination)], "localPortNumber": [str(port)]}
    call = json.dumps({"Target": TARGET, "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost", "Parameters": parameters})
    headers = {"X-Amz-Target": "AmazonSSM.StartSession"}
    with urllib.request.urlopen(urllib.request.Request(f"http://{gateway}/", call.encode(), headers)) as answer:
        answer = answer.read().decode()
    environment = surroundings()
    command = [program, answer, environment["AWS_REGION"], "StartSession", "", call, f"http://{gateway}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Waiting for connections"):
            break
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, port


class Client:
    def __init__(self, host, port):
        self.address = (host, port)

    def connect(self):
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def download(self, connection, length):
        connection.sendall(struct.pack(">cQ", b"D", length))
        if read(connection, length) != data(length):
            raise ValueError("other bytes came than were sent")

    def upload(self, connection, length):
        connection.sendall(struct.pack(">cQ", b"U", length) + data(length))
        if read(connection, 32) != hashlib.sha256(data(length)).digest():
            raise ValueError("other bytes came than were sent")

    def requests(self):
        times = []
        with self.connect() as connection:
            for _ in range(100):
                start = time.monotonic()
                self.download(connection, 512)
                times.append(time.monotonic() - start)
        return f"p50 {sorted(times)[50] * 1000:.1f} ms"

    def one_after_the_other(self):
        for _ in range(100):
            with self.connect() as connection:
                self.download(connection, 100)

    def at_once(self):
        errors = []

        def both_ways():
            try:
                with self.connect() as connection:
                    self.upload(connection, 32 << 10)
                    self.download(connection, 32 << 10)
            except (EOFError, OSError, ValueError) as error:
                errors.append(error)

        threads = [threading.Thread(target=both_ways) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise EOFError(f"{len(errors)} of 32: {errors[0]}")

    def transfer(self, direction):
        with self.connect() as connection:
            direction(connection, MIB)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gateway", nargs="?")
    client = parser.add_mutually_exclusive_group(required=True)
    client.add_argument("--forward", metavar="PROGRAM")
    client.add_argument("--plugin", metavar="PROGRAM")
    client.add_argument("--client", metavar="HOST:PORT")
    parser.add_argument("--destination", metavar="PORT", type=int, default=0)
    ours, flags = sys.argv[1:], []
    if "--" in ours:
        ours, flags = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    args = parser.parse_args(ours)
    if (args.gateway is None) != (args.client is not None):
        parser.error("a gateway is for `--forward` and `--plugin`, and only for them")

    destination = start_destination(args.destination)
    gateway = process = None
    if args.client:
        host, _, port = args.client.rpartition(":")
    else:
        address, gateway = start_gateway(args.gateway, flags)
        start, program = (start_forward, args.forward) if args.forward else (start_plugin, args.plugin)
        process, port = start(program, address, destination)
        host = "127.0.0.1"
    client = Client(host, int(port))
    steps = [
        ("100 requests of 512 bytes", client.requests),
        ("download of 1 MiB", lambda: client.transfer(client.download)),
        ("upload of 1 MiB", lambda: client.transfer(client.upload)),
        ("32 connections, 32 KiB each way", client.at_once),
        ("100 connections, one after the other", client.one_after_the_other),
    ]
    failed = False
    for name, step in steps:
        start = time.monotonic()
        try:
            outcome = step() or ""
        except (EOFError, OSError, ValueError) as error:
            failed, outcome = True, f"FAILED: {error}"
        print(f"{name:<38} {time.monotonic() - start:6.2f} s  {outcome}", flush=True)
    end(process)
    end(gateway)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

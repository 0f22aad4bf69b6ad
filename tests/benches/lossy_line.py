#!/usr/bin/env python3
"""Uploads through a tunnel beside those of TCP itself, over a line that delays and loses packets.

    tests/benches/lossy_line.py target/dist/examples/bench

Needs Linux, root, `ip` and `iptables`. The ends of the line are two network namespaces with a TUN device each; packets between them wait for
their turn, are late by half of the round trip, and some are lost. The emulated AWS and the destination are at the far end, the
program and the load at the near one. What goes to a port of the far end is led there, so that it is the kernel's own TCP that
crosses the line, with the congestion control that is said: for the upload beside it as for the program's WebSocket.
"""

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import re
import select
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
FAR = "10.77.0.2"
# Bytes that wait before the line; more are dropped, as routers do.
QUEUE = 1 << 20
REQUEST = (128, 512)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="the example `bench`; the program is beside its folder")
    parser.add_argument("--rtt", type=float, default=80, help="round trip, in milliseconds")
    parser.add_argument("--loss", type=float, default=0.001, help="fraction of the packets that are lost, each way")
    parser.add_argument("--rate", type=float, default=12.5e6, help="bytes a second, each way")
    parser.add_argument("--bytes", type=int, default=8 << 20, help="of each upload")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--congestion-control", nargs="+", default=["cubic", "bbr"])
    args = parser.parse_args()
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        parser.error("it makes network namespaces and TUN devices, for which it has to be root on Linux")
    if not args.bench.is_file():
        parser.error(f"there is no `{args.bench}`: run `cargo build --profile dist --bins --example bench` first")
    print(f"round trip {args.rtt:g} ms, {100 * args.loss:g} % lost, {args.rate / 1e6:g} MB/s; medians of {args.runs} runs")
    print("| congestion control | connections, sessions | autoheal-pa | TCP itself | ratio |\n| --- | --- | --- | --- | --- |")
    for control in args.congestion_control:
        for connections in args.connections:
            pairs = measure(args, control, connections)
            ours, theirs = (statistics.median(values) for values in zip(*pairs))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"| {control} | {connections} | {ours / 1e6:.2f} MB/s | {theirs / 1e6:.2f} MB/s | {ratio:.2f} |", flush=True)


def measure(args, control, connections):
    """Uploads in turns; returns bytes a second of each pair."""
    with contextlib.ExitStack() as stack:
        near, far = line(stack, args, control)
        home = stack.enter_context(tempfile.TemporaryDirectory())
        variables = {"HOME": home, "XDG_RUNTIME_DIR": home, "TMPDIR": home, "PATH": os.environ["PATH"]}
        emulator = start(stack, far, variables, args.bench.resolve(), "emulator")
        hello = json.loads(emulator.stdout.readline())
        for port in listening(emulator.pid):
            lead(near, "OUTPUT", "127.0.0.1", port, FAR)
            lead(far, "PREROUTING", FAR, port, "127.0.0.1")
        inside(near, "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "line1", "-j", "MASQUERADE")
        program = args.bench.resolve().parent.parent / "autoheal-pa"
        # A lossy line limits each TCP connection, of which each session has one.
        options = ["up", "--base-port", "0", "--no-rate-limit", "--sessions", str(connections)]
        up = start(stack, near, variables | dict(hello["environment"]), program, *options)
        assert up.stdout.readline() == b"tunnel ready\n"
        kubeconfig = (Path(home) / ".kube/autoheal-pa.yaml").read_text()
        tunnel = int(re.search(r"server: .*127\.0\.0\.1:(\d+)", kubeconfig)[1])
        destination = int(hello["destination"].rsplit(":")[-1])
        both = [connections_of(near, port, connections) for port in (tunnel, destination)]
        # The first pair only finds out how fast the line is, as every connection does at its beginning.
        pairs = [[upload(ends, args.bytes) for ends in both] for _ in range(1 + args.runs)]
        for end in sum(both, []):
            end.close()
        return pairs[1:]


def line(stack, args, control):
    """Makes the two ends, and a process that is the line between them."""
    names, tuns = [f"line-{os.getpid()}-{end}" for end in ("near", "far")], []
    for number, name in enumerate(names, 1):
        tun = os.open("/dev/net/tun", os.O_RDWR)
        stack.callback(os.close, tun)
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", f"line{number}".encode(), IFF_TUN | IFF_NO_PI))
        run("ip", "link", "set", f"line{number}", "netns", name)
        run("ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", f"line{number}")
        for device in ("lo", f"line{number}"):
            run("ip", "-n", name, "link", "set", device, "up")
        # A socket asks for its route before it is led to the far end.
        run("ip", "-n", name, "route", "replace", "local", "127.0.0.1", "dev", "lo", "table", "local", "congctl", control)
        run("ip", "-n", name, "route", "replace", "10.77.0.0/24", "dev", f"line{number}", "congctl", control)
        inside(name, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        tuns.append(tun)
    child = os.fork()
    if child == 0:
        try:
            carry(tuns, args.rtt / 2000, args.loss, args.rate)
        finally:
            os._exit(1)
    stack.callback(os.waitpid, child, 0)
    stack.callback(os.kill, child, signal.SIGKILL)
    return names


def carry(tuns, delay, loss, rate):
    chance, waiting, number = random.Random(1), [], 0
    free_at, other = dict.fromkeys(tuns, 0.0), dict(zip(tuns, reversed(tuns)))
    for tun in tuns:
        os.set_blocking(tun, False)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for tun in select.select(tuns, [], [], pause)[0]:
            packet, now = os.read(tun, 65536), time.monotonic()
            begins = max(free_at[tun], now)
            if (begins - now) * rate > QUEUE or chance.random() < loss:
                continue
            free_at[tun] = begins + len(packet) / rate
            number += 1
            heapq.heappush(waiting, (free_at[tun] + delay, number, other[tun], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(waiting)
            os.write(tun, packet)


def run(*command):
    subprocess.run(command, check=True)


def inside(namespace, *command):
    run("ip", "netns", "exec", namespace, *command)


def lead(namespace, chain, address, port, to):
    """Leads what goes to a port of one address to the same port of another."""
    which = ("-d", address, "-p", "tcp", "--dport", str(port))
    inside(namespace, "iptables", "-t", "nat", "-A", chain, *which, "-j", "DNAT", "--to-destination", to)


def listening(pid):
    """The ports on which anybody listens in the namespace of a process."""
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sorted({int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"})


def start(stack, namespace, variables, *command):
    command = ["ip", "netns", "exec", namespace, *map(str, command)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    stack.callback(child.wait)
    stack.callback(child.terminate)
    return child


def enter(namespace):
    """Moves this thread, and the sockets that it makes, into a namespace."""
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def exchange(connection, there, back):
    connection.sendall(b"x" + struct.pack(">QQ", there, back) + bytes(there))
    while back > 0:
        block = connection.recv(min(back, 1 << 16))
        assert block, "the connection has ended"
        back -= len(block)


def connections_of(namespace, port, count):
    """Opens connections that have had an answer each."""

    def connect(_):
        enter(namespace)
        connection = socket.create_connection(("127.0.0.1", port))
        exchange(connection, *REQUEST)
        return connection

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(connect, range(count)))


def upload(ends, total):
    """Returns bytes a second, up to the last answer."""
    with ThreadPoolExecutor(len(ends)) as pool:
        since = time.monotonic()
        list(pool.map(lambda end: exchange(end, total // len(ends), 1), ends))
        return total / (time.monotonic() - since)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes `seeds/` anew: from the recordings in `tests/fixtures/traces`, and from what is written out below."""

import glob
import hashlib
import json
import math
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
TRACES = sorted(glob.glob(os.path.join(HERE, "../fixtures/traces/*.jsonl")))

# Payload types.
OUTPUT, HANDSHAKE_REQUEST, HANDSHAKE_COMPLETE, FLAG = 1, 5, 7, 10


class Message:
    """What a seed needs of a binary message."""

    def __init__(self, raw):
        self.raw = raw
        header = int.from_bytes(raw[:4], "big")
        self.type = raw[4:36].strip(b"\0 ").decode()
        self.number = int.from_bytes(raw[48:56], "big")
        self.payload_type = int.from_bytes(raw[112:116], "big") if header >= 116 else 0
        self.payload = raw[header + 4 :]


def entries(path):
    with open(path) as lines:
        for line in lines:
            entry = json.loads(line)
            is_message = entry["kind"] == "binary"
            yield entry, Message(bytes.fromhex(entry["hex"])) if is_message else None


def write(target, seeds):
    """Writes each seed once, under a name that does not change."""
    directory = os.path.join(HERE, "seeds", target)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    for seed in seeds:
        with open(os.path.join(directory, hashlib.sha256(seed).hexdigest()[:16]), "wb") as out:
            out.write(seed)


def message_seeds():
    """One message of each type, payload type and rough length; and those that only the service makes."""
    seen = {}
    for path in TRACES:
        for _, message in entries(path):
            if message:
                key = (message.type, message.payload_type, len(message.raw).bit_length())
                seen.setdefault(key, message.raw)
    for name in [b"start_publication", b"pause_publication", b"channel_closed"]:
        payload = b'{"SessionId":"s-1","Output":"idle"}'
        raw = struct.pack(">I32sIQqQ16s32sI", 112, name, 1, 1, 0, 3, b"i" * 16, hashlib.sha256(payload).digest(), 0)
        seen[name] = raw + payload
    return seen.values()


def byte_streams(path):
    """The smux pieces of both directions between client and service, in order and without repeats."""
    pieces = {}
    for entry, message in entries(path):
        if message and message.payload_type == OUTPUT and "client" in entry["dir"]:
            pieces.setdefault(entry["dir"], {}).setdefault(message.number, message.payload)
    return [[piece for _, piece in sorted(numbered.items())] for numbered in pieces.values()]


def smux_seeds():
    """Byte streams, behind the places at which they were cut."""
    for path in TRACES:
        for pieces in byte_streams(path):
            pieces = [piece[:200] if sum(map(len, pieces)) > 4000 else piece for piece in pieces][:8]
            cuts = bytes(min(len(piece), 255) for piece in pieces)
            yield bytes([len(cuts)]) + cuts + b"".join(pieces)


def handshake_seeds():
    """Payloads of everything but forwarded bytes."""
    seen = {}
    for path in TRACES:
        for _, message in entries(path):
            if message and message.payload_type != OUTPUT:
                seen.setdefault((message.type, message.payload_type), message.payload)
    action = '{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"host":"h","portNumber":"443","type":"LocalPortForwarding"}}}'
    kms = '{"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"arn:aws:kms:us-east-1:1:key/k"}}'
    other = '{"ActionType":"Dance","ActionParameters":null}'
    shell = '{"ActionType":"SessionType","ActionParameters":{"SessionType":"Standard_Stream"}}'
    requests = [(action, "3.0.196.0"), (action, "3.1.1400.0"), (f"{action},{kms}", "3.3.1142.0")]
    requests += [(f"{other},{shell}", "3.3.1142.0"), ("", "3.3.1142.0"), (action, "3.3")]
    for actions, version in requests:
        seen[actions, version] = f'{{"AgentVersion":"{version}","RequestedClientActions":[{actions}]}}'.encode()
    return seen.values()


# Steps of the target `session`, as `src/route/ssm/proto/fuzzing/session.rs` reads them.
PASS, OPEN, WRITE, FINISH, DETACH, REATTACH = 0, 3, 4, 5, 9, 10
PSH, FIN, FLUSH, LOSE, REPEAT, NUMBERED = 12, 13, 16, 17, 18, 20
ACKNOWLEDGE_ALL, SERVICE, NEXT_FLAG, REQUEST, SKIP = 24, 26, 27, 30, 31


def frames(decoder, payload):
    """Cuts a direction's bytes into frames; `decoder` is what was left of the last piece."""
    decoder += payload
    while len(decoder) >= 8:
        _, command, length, stream = struct.unpack("<BBHI", decoder[:8])
        if len(decoder) < 8 + length:
            return
        del decoder[: 8 + length]
        yield command, length, stream


def session_seed(path):
    """A recording as a list of steps, with shorter data."""
    steps = bytearray([0x20])
    now, client, agent = 0, bytearray(), bytearray()
    client_number, agent_number = 1, 0
    streams = []
    for entry, message in entries(path):
        steps += bytes([PASS, min(math.isqrt(max(int(entry["t_ms"] - now), 0)), 255)])
        now = max(entry["t_ms"], now)
        what = (entry["dir"], entry.get("what"))
        if what == ("client->service", "closed"):
            steps += bytes([DETACH])
        elif what == ("client->service", "open"):
            steps += bytes([REATTACH])
        if not message:
            continue
        if entry["dir"] == "client->service" and message.payload_type == OUTPUT and message.number == client_number:
            client_number += 1
            for command, length, stream in frames(client, message.payload):
                if command == 0:
                    streams.append(stream)
                    steps += bytes([OPEN])
                elif command == 2:
                    steps += bytes([WRITE, streams.index(stream), min(length // 16 + 1, 255)])
                elif command == 1:
                    steps += bytes([FINISH, streams.index(stream)])
        elif entry["dir"] == "service->client" and message.type == "acknowledge":
            steps += bytes([ACKNOWLEDGE_ALL])
        elif entry["dir"] == "service->client" and message.type == "channel_closed":
            steps += bytes([SERVICE, 7, 0])
        elif entry["dir"] == "service->client" and message.number < agent_number:
            steps += bytes([REPEAT, agent_number - 1 - message.number])
        elif entry["dir"] == "service->client":
            agent_number = message.number + 1
            if message.payload_type == OUTPUT:
                for command, length, stream in frames(agent, message.payload):
                    if command == 2:
                        steps += bytes([PSH, streams.index(stream), 7, min(length // 8, 255)])
                    elif command == 1:
                        steps += bytes([FIN, streams.index(stream)])
                steps += bytes([FLUSH, 128])
            elif message.payload_type == HANDSHAKE_REQUEST:
                steps += bytes([REQUEST, len(message.payload)]) + message.payload
            elif message.payload_type == FLAG:
                steps += bytes([NEXT_FLAG, message.payload[3]])
            else:
                steps += bytes([NUMBERED, 0, message.payload_type, len(message.payload)]) + message.payload
                steps += bytes([SKIP, 1])
    return bytes(steps)


def session_seeds():
    for path in TRACES:
        yield session_seed(path)
    # Loss, a repeat, and a message behind a gap.
    yield bytes([0, OPEN, WRITE, 0, 9, PSH, 0, 1, 9, LOSE, 255, PSH, 0, 2, 9, FLUSH, 255, REPEAT, 1, REPEAT, 0, FIN, 0, FLUSH, 255])
    # A budget that is spent, a refusal, a pause, and a gap that nobody fills.
    yield bytes([0x07, OPEN, OPEN] + [PSH, 0, 1, 100, PSH, 1, 2, 50, FLUSH, 255] * 3)
    yield bytes([0, OPEN, NEXT_FLAG, 3, FIN, 0, FLUSH, 255, SERVICE, 0, 0, PASS, 40, WRITE, 0, 4, SERVICE, 3, 0])
    yield bytes([0x08, OPEN, WRITE, 0, 127, SKIP, 9] + [PSH, 0, 1, 60, FLUSH, 255] * 3 + [DETACH, PASS, 90, REATTACH])


def control_seeds():
    return [
        b'{"version":1,"request":"token","cluster":"prod","region":"us-east-1"}\n',
        b'{"version":1,"request":"token","cluster":"prod","region":"us-east-1","unknown":[1,{"a":null}]}\n',
        b'{"version":1,"request":"status"}\n',
        b'{"version":2,"request":"token","cluster":"prod","region":"us-east-1"}\n',
        b'{"version":1,"answer":"token","token":"k8s-aws-v1.aHR0cHM6Ly9zdHM","expires":1795317508}\n',
        b'{"version":1,"answer":"token","token":"a\\u0000\\ud83d\\ude00","expires":18446744073709551615}\n',
        b'{"version":1,"answer":"error","code":"unknown-request","message":"this manager does not know the request `x`"}\n',
        b'{"expires":1,"answer":"token","version":1,"token":""}',
        b"[1,",
    ]


def stream_url_seeds():
    """A byte that chooses a policy, and a URL: see `src/aws/fuzzing.rs`."""
    path = "/v1/data-channel/s-1?role=publish_subscribe&cell-number=AAEA+x"
    regions = ["us-east-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "eusc-de-east-1"]
    domains = ["amazonaws.com", "amazonaws.com.cn", "amazonaws.com", "c2s.ic.gov", "amazonaws.eu"]
    for choice, (region, domain) in enumerate(zip(regions, domains)):
        yield choice, f"wss://ssmmessages.{region}.{domain}{path}"
        yield choice, f"wss://vpce-0a1b-abcd.ssmmessages.{region}.vpce.{domain}:443{path}"
    for url in [
        "wss://ssmmessages-fips.us-east-1.api.aws/v1?X-Amz-Signature=00",
        "wss://SSMMessages.us-east-1.AmazonAWS.com:0443/#x",
        "wss://ssmmessages.us-east-1.amazonaws.com@evil.com/",
        "wss://user:pw@ssmmessages.us-east-1.amazonaws.com/",
        "wss://ssmmessages.us-east-1.amazonaws.com./",
        "wss://ssmmessages.us-east-1.amazonaws.com:65979/",
        "wss://evil.com#ssmmessages.us-east-1.amazonaws.com",
        "ws://ssmmessages.us-east-1.amazonaws.com/",
    ]:
        yield 0, url
    for url in ["ws://127.0.0.1:4000/v1", "wss://[::1]:4000/v1", "ws://localhost:1/", "wss://ssm.corp.example:9000/v1", "ws://127.1/"]:
        yield 5, url
    yield 10, "ws://[::ffff:127.0.0.1]:4000/v1"
    yield 15, "ws://127.255.255.254:1/?a=b"


def proxy_seeds():
    """What clients begin with: see `src/manager/proxy/opening.rs`."""
    host = b"0AB1.gr7.us-east-1.eks.amazonaws.com"
    named = bytes([5, 1, 0, 3, len(host)]) + host + bytes([1, 187])
    return [
        b"CONNECT " + host + b":443 HTTP/1.1\r\nHost: " + host + b":443\r\nUser-Agent: kubectl\r\n\r\n\x16\x03\x01",
        b"CONNECT [fd00::5]:6443 HTTP/1.0\r\n\r\n",
        b"CONNECT db.internal:0 HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
        b"GET http://wiki.internal:8080/a?b HTTP/1.1\r\nHost: wiki.internal\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:10099\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        bytes([5, 1, 0]) + named + b"early",
        bytes([5, 3, 0, 1, 2, 5, 1, 0, 1, 10, 0, 0, 7, 21, 56]),
        bytes([5, 1, 0, 5, 1, 0, 4, 253] + [0] * 14 + [5, 1, 187]),
        bytes([5, 1, 0, 5, 2, 0, 1, 10, 0, 0, 7, 21, 56]),
        bytes([5, 1, 0, 5, 1, 0, 2]),
        bytes([5, 1, 2]),
        bytes([4, 1, 0, 80, 0, 0, 0, 1, 0]) + host + b"\0",
    ]


OURS = """apiVersion: "v1"
kind: "Config"
clusters:
- name: "pa-no"
  cluster:
    server: "https://127.0.0.1:10100"
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
users: []
contexts:
- name: "pa-no"
  context:
    cluster: "pa-no"
    user: "pa-no"
    namespace: "on"
    extensions:
    - name: "autoheal-pa"
      extension:
        manager: "default"
current-context: "pa-no"
"""

FOREIGN = """# The user's own.
apiVersion: v1
kind: Config
preferences: {colors: true}
clusters:
- name: prod
  cluster: {server: "https://prod.example", extensions: [{name: x, extension: {on: off, mode: 0644}}]}
users:
- name: prod
  user: {token: "0123", auth-provider: {config: {expiry: 2001-12-14}}}
contexts:
- name: prod
  context: {cluster: prod, user: prod, namespace: "on"}
current-context: prod
"""


def kubeconfig_seeds():
    """A byte that chooses what is merged, and a file: see `src/kubeconfig/fuzzing.rs`."""
    files = [
        "",
        "---\n# nothing\n",
        OURS,
        FOREIGN,
        OURS.replace('manager: "default"', "manager: other"),
        '{"kind":"Config","apiVersion":"v1","clusters":null,"users":[],"contexts":[{"name":"a","context":{}}],"current-context":"a"}',
        "kind: Config\nclusters:\n- &a {name: x, cluster: &c {a: no, b: 0x10, c: 1e3, d: ~, e: .inf}}\n- {name: y, cluster: *c}\n",
        "kind: Config\nx:\n  a: !!str no\n  b: |-\n    on\n  c: >\n    two\n    lines\n  d: 'it''s'\n  e: \"\\x41\\u2028\"\n  ? f g\n  : - - 1\n    - - 2_000\n",
        "kind: Config\nx: &x\n  <<: {y: 12:30, =: 0777}\nz: [*x, y, -1, +.5, 1_0, 0o7, 0b1, !!int '3', !!float 1]\n",
        "\ufeffkind: Config\r\nusers:\r\n- name: pa-no\r\n  user: {exec: {command: x}}\r\n",
        "kind: Config\ncontexts: {a: 1}\n",
        "|\n# ",
        "kind: Config\nclusters:\n- {name: k, cluster: {server: 'https://[fd00::1]:8443/k8s/', tls-server-name: api, certificate-authority-data: TFMwdA==}}\n"
        "- {name: i, cluster: {server: 'https://h', insecure-skip-tls-verify: yes}}\nusers: [{name: prod, user: {token: x}}]\n"
        "contexts: [{name: a, context: {cluster: k, user: prod, namespace: n}}, {name: b, context: {cluster: i, user: prod}}]\n",
        '{"a",!mine :x""a"e}',
    ]
    for index, text in enumerate(files):
        yield index % 8, text
    yield 7, OURS
    yield 2, FOREIGN


SEVERAL = """# Two regions.
base_port: 10100
role_session_name: alice@example.com
access:
  - region: us-east-1
    bastion: [i-0dc03fbcae2a87472, i-0fedcba9876543210]
    role_arn: arn:aws:iam::123456789012:role/AutohealReadOnlyRole
    clusters: [payments, search]
  - region: eu-west-1
    bastion: mi-0dc03fbcae2a87472
    profile: "dev"
    clusters:
    - no
    - 8814e27
"""


def config_seeds():
    return [
        "",
        "---\n# nothing\n",
        SEVERAL,
        SEVERAL.replace("access:", "acess:").replace("us-east-1", "US East"),
        "region: us-east-1\nbastion: i-0abcdef1,i-0abcdef2\nduration: 1h\nrole_arn: arn:aws:iam::123456789012:role/x\nweb_identity_token_file: ~/token\n",
        "bastion: i-0abcdef1\nbase_port: 0\nstrict_ports: true\nset_current: false\ncontext_prefix: ''\ntimeout: 5m\nprobe_interval: 0\nreconnect_timeout: 90s\n",
        "reason: >-\n  two\n  lines\nkubeconfig: |\n  a\nenv_file: 'it''s'\nca_bundle: \"\\x41\\u2028\"\n",
        "access: [{region: &r a-1, bastion: &b [i-0abcdef1]}, {region: *r, bastion: *b, profile: x}]\n",
        "region: a-1\nregion: b-1\nclusters: [[a], {b: c}, ~]\naccess: {a: b}\nstrict_ports: yes\n? [k]\n: v\n",
        "\ufeffregion: a-1\r\naccess:\r\n- bastion: i-0abcdef1\r\n",
        "region: a\n\tprofile: b\n---\nregion: !!str c\n",
    ]


write("config", map(str.encode, config_seeds()))
write("message", message_seeds())
write("smux", smux_seeds())
write("handshake", handshake_seeds())
write("session", session_seeds())
write("control", control_seeds())
write("proxy", proxy_seeds())
write("stream_url", (bytes([choice]) + url.encode() for choice, url in stream_url_seeds()))
write("kubeconfig", (bytes([choice]) + text.encode() for choice, text in kubeconfig_seeds()))

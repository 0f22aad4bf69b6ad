// Brings the program here: out of a release, whose archive is believed only by its checksum, or from a path.

import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";

import { member } from "./archive.mjs";
import { download, Refused } from "./download.mjs";
import { Failure, say, variable } from "./runner.mjs";

/** What releases are built for, by what Node.js calls it. */
const TARGETS = { x64: "x86_64-unknown-linux-musl", arm64: "aarch64-unknown-linux-musl" };

const PROGRAM = "autoheal-pa";

/**
 * Installs what the inputs ask for. `folder` is for a program that is given by its path: of an artifact the runner has lost the
 * permission to run it. Returns the path of the program.
 */
export async function install(inputs, folder) {
    return inputs.path === "" ? await fromRelease(inputs) : copy(inputs.path, folder);
}

function copy(from, folder) {
    const to = path.join(folder, "bin", PROGRAM);
    mkdirSync(path.dirname(to), { recursive: true });
    try {
        copyFileSync(from, to);
    } catch (cause) {
        throw new Failure(`the program of the input \`path\` cannot be copied: ${cause.message}`);
    }
    chmodSync(to, 0o755);
    return to;
}

async function fromRelease({ version, sha256, repository, token }) {
    const target = process.platform === "linux" ? TARGETS[process.arch] : undefined;
    if (target === undefined) {
        const there = Object.values(TARGETS).join("` and `");
        throw new Failure(
            `no release is built for ${process.platform} on ${process.arch}, only for \`${there}\`: ` +
                "build the program in the job, and name it by the input `path`",
        );
    }
    const folder = `${PROGRAM}-${version}-${target}`;
    const archive = `${folder}.tar.gz`;
    const release = token === "" ? publicRelease(repository, version) : await privateRelease(repository, version, token);

    const [origin, expected] =
        sha256.length > 0 ? ["the input `sha256`", sha256] : ["SHA256SUMS", [checksum(await release("SHA256SUMS"), archive)]];

    // By its checksum, so that another archive is never taken for it, and one that is there is whole.
    const root = variable("RUNNER_TOOL_CACHE");
    const place = (digest) => path.join(root, PROGRAM, version, `${process.arch}-${digest}`);
    const cached = expected.map(place).find((place) => existsSync(path.join(place, PROGRAM)));
    if (cached !== undefined) {
        say(`${version} is in the tool cache`);
        return path.join(cached, PROGRAM);
    }

    const bytes = await release(archive);
    const actual = createHash("sha256").update(bytes).digest("hex");
    if (!expected.includes(actual)) {
        throw new Failure(
            `the checksum of \`${archive}\` is wrong: it is ${actual}, and ${origin} has ${expected.join(", ")}. ` +
                `Nothing was unpacked. Compare it with the release of \`${repository}\`: it has been replaced or damaged, ` +
                "or the checksum is that of another version",
        );
    }
    store(member(bytes, `${folder}/${PROGRAM}`), place(actual));
    say(`installed ${version} from \`${repository}\`, sha256 ${actual}`);
    return path.join(place(actual), PROGRAM);
}

/** Puts the program into a folder that others see only when it is complete. */
function store(bytes, place) {
    mkdirSync(path.dirname(place), { recursive: true });
    const unfinished = mkdtempSync(`${place}.`);
    try {
        chmodSync(unfinished, 0o755);
        writeFileSync(path.join(unfinished, PROGRAM), bytes, { mode: 0o755 });
        renameSync(unfinished, place);
    } catch (cause) {
        rmSync(unfinished, { recursive: true, force: true });
        // Another job of this machine was quicker, with the same bytes.
        if (!existsSync(path.join(place, PROGRAM))) {
            throw new Failure(`\`${place}\` cannot be written: ${cause.message}`);
        }
    }
}

/** The checksum of a file in a SHA256SUMS. */
function checksum(sums, name) {
    for (const line of sums.toString("utf8").split("\n")) {
        const found = /^([0-9a-f]{64}) [ *](.+)$/.exec(line.trimEnd());
        if (found?.[2] === name) {
            return found[1];
        }
    }
    throw new Failure(`SHA256SUMS of the release has no \`${name}\``);
}

/** A release that everybody may read: a function from names of files to their bytes. */
function publicRelease(repository, version) {
    const server = variable("GITHUB_SERVER_URL");
    return async (name) => {
        try {
            return await download(`${server}/${repository}/releases/download/v${version}/${name}`);
        } catch (cause) {
            throw explain(cause, repository, version, "if it is private, give the input `token`");
        }
    };
}

/** The same for a private repository, whose files are had by the API alone. */
async function privateRelease(repository, version, token) {
    const headers = { authorization: `Bearer ${token}`, "x-github-api-version": "2022-11-28" };
    const ask = async (url, accept) => {
        try {
            return await download(url, { ...headers, accept });
        } catch (cause) {
            throw explain(cause, repository, version, "and may the token read its contents?");
        }
    };
    const releases = `${variable("GITHUB_API_URL")}/repos/${repository}/releases`;
    const url = `${releases}/tags/v${version}`;
    const answer = await ask(url, "application/vnd.github+json");
    let assets;
    try {
        ({ assets } = JSON.parse(answer.toString("utf8")));
    } catch (cause) {
        throw new Failure(`\`${url}\` answers with something else than JSON: ${cause.message}`);
    }
    return async (name) => {
        const asset = Array.isArray(assets) ? assets.find((asset) => asset.name === name) : undefined;
        if (asset === undefined) {
            throw new Failure(`the release v${version} of \`${repository}\` has no file \`${name}\``);
        }
        return await ask(`${releases}/assets/${Number(asset.id)}`, "application/octet-stream");
    };
}

function explain(cause, repository, version, more) {
    if (!(cause instanceof Refused) || ![401, 403, 404].includes(cause.status)) {
        return cause;
    }
    return new Failure(`${cause.message}: has \`${repository}\` a release v${version} that is published, with this file? ${more}`);
}

// Reads one file out of a `.tar.gz`: the image of a container may have no tar, and what is taken by its whole name cannot
// be put anywhere else.

import { gunzipSync } from "node:zlib";

import { Failure } from "./runner.mjs";

const BLOCK = 512;

/** More than any release unpacks to, in bytes. */
const MOST = 1 << 30;

function text(header, from, length) {
    const field = header.subarray(from, from + length);
    const end = field.indexOf(0);
    return field.subarray(0, end < 0 ? length : end).toString("latin1");
}

/** The bytes of a regular file in an archive, by its name there. */
export function member(archive, name) {
    let tar;
    try {
        tar = gunzipSync(archive, { maxOutputLength: MOST });
    } catch (cause) {
        throw new Failure(`the archive cannot be unpacked: ${cause.message}`);
    }
    for (let at = 0; at + BLOCK <= tar.length; ) {
        const header = tar.subarray(at, at + BLOCK);
        const size = Number.parseInt(text(header, 124, 12).trim() || "0", 8);
        if (Number.isNaN(size)) {
            throw new Failure("the archive cannot be read: it is not a plain tar");
        }
        at += BLOCK;
        // Names of up to 100 bytes, as those of releases are, stand in the header itself.
        if (text(header, 0, 100) === name && ["0", ""].includes(text(header, 156, 1))) {
            if (at + size > tar.length) {
                throw new Failure("the archive cannot be read: it ends within a file");
            }
            return tar.subarray(at, at + size);
        }
        at += Math.ceil(size / BLOCK) * BLOCK;
    }
    throw new Failure(`the archive has no file \`${name}\``);
}

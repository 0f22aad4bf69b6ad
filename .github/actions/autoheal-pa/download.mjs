// Downloads by HTTP, whole or not at all.
//
// Not by `fetch`, which knows nothing of HTTPS_PROXY unless Node.js was started with a flag.

import http from "node:http";
import https from "node:https";
import { setTimeout as pause } from "node:timers/promises";

import { Failure, say } from "./runner.mjs";

/** Pauses before the second and the third attempt, in milliseconds. */
const PAUSES = [500, 2_000];

/** How long nothing may come, in milliseconds. */
const SILENCE = 60_000;

/** More than any release has, in bytes. */
const MOST = 256 << 20;

const REDIRECTS = 5;

/** A failure after which the same may succeed. */
class Passing extends Failure {}

/** What is at an address that answers with another status than 200. */
export class Refused extends Failure {
    constructor(url, status) {
        super(`\`${url}\` answers with HTTP status ${status}`);
        this.status = status;
    }
}

// Node.js since 24.5 takes the proxy of the environment if it is told to; an earlier one passes over the option.
const agents = {
    "http:": new http.Agent({ proxyEnv: process.env }),
    "https:": new https.Agent({ proxyEnv: process.env }),
};

function request(url, headers) {
    return new Promise((resolve, reject) => {
        const { get } = url.protocol === "https:" ? https : http;
        const agent = agents[url.protocol];
        const asked = get(url, { agent, headers: { "user-agent": "autoheal-pa-action", ...headers } }, resolve);
        asked.setTimeout(SILENCE, () => asked.destroy(new Error(`nothing has come for ${SILENCE / 1_000} s`)));
        asked.once("error", reject);
    });
}

async function attempt(first, headers) {
    let url = new URL(first);
    for (let redirects = 0; redirects <= REDIRECTS; redirects += 1) {
        const answer = await request(url, headers);
        const { statusCode: status } = answer;
        if ([301, 302, 303, 307, 308].includes(status) && answer.headers.location) {
            answer.resume();
            const next = new URL(answer.headers.location, url);
            if (next.protocol !== url.protocol && next.protocol !== "https:") {
                throw new Failure(`\`${url}\` leads to \`${next.protocol}\`, which is not taken for safe`);
            }
            if (next.origin !== url.origin) {
                // The address of a storage is signed itself, and the token is none of its business.
                headers = Object.fromEntries(Object.entries(headers).filter(([name]) => name !== "authorization"));
            }
            url = next;
            continue;
        }
        if (status !== 200) {
            answer.resume();
            throw status >= 500 || status === 429 ? new Passing(`\`${url}\` answers with HTTP status ${status}`) : new Refused(first, status);
        }
        return await body(answer, first);
    }
    throw new Failure(`\`${first}\` leads from one address to another without an end`);
}

async function body(answer, url) {
    const parts = [];
    let length = 0;
    for await (const part of answer) {
        length += part.length;
        if (length > MOST) {
            throw new Failure(`\`${url}\` has more than ${MOST} bytes`);
        }
        parts.push(part);
    }
    return Buffer.concat(parts);
}

/** The bytes at an address. */
export async function download(url, headers = {}) {
    for (let tried = 0; ; tried += 1) {
        try {
            return await attempt(url, headers);
        } catch (cause) {
            if (cause instanceof Failure && !(cause instanceof Passing)) {
                throw cause;
            }
            const why = cause instanceof Passing ? cause.message : `\`${url}\` cannot be downloaded: ${cause.message || cause.code}`;
            if (tried === PAUSES.length) {
                throw new Failure(`${why}, after ${tried + 1} attempts`);
            }
            say(`${why}; trying again`);
            await pause(PAUSES[tried]);
        }
    }
}

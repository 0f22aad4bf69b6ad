// Runs the program: without a shell, with what it prints in the log as it comes, and without what is not its business.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

import { Failure, stopCommands } from "./runner.mjs";

/**
 * The environment of the program. A manager lives as long as the job, and whoever reads its environment is to find no more there
 * than in that of any step: not the inputs, of which one is a token, and not what only actions are given to store artifacts and caches.
 */
export function environment(changes = {}) {
    const kept = Object.entries(process.env).filter(([name]) => {
        return !/^(INPUT|STATE)_|^ACTIONS_(RUNTIME|RESULTS|CACHE)_/.test(name);
    });
    return { ...Object.fromEntries(kept), ...changes };
}

/** Signals by which the runner cancels a job. */
const CANCELLED = ["SIGINT", "SIGTERM"];

/**
 * Runs the program to its end. With `shown`, its output goes to the log, both kinds in the order in which they come. After `limit`
 * milliseconds it is killed.
 */
export async function run(program, args, { env = environment(), shown = true, limit } = {}) {
    const resume = shown ? stopCommands() : () => {};
    const child = spawn(program, args, { env, shell: false, stdio: ["ignore", "pipe", "pipe"] });
    // Its own `timeout` would go on after a program that cannot be started.
    const late = limit === undefined ? undefined : setTimeout(() => child.kill("SIGKILL"), limit);
    // The program ends its sessions before it goes.
    const forward = (signal) => child.kill(signal);
    CANCELLED.forEach((signal) => process.on(signal, forward));
    const collected = { stdout: [], stderr: [] };
    const collect = async (name) => {
        for await (const line of createInterface({ input: child[name] })) {
            collected[name].push(line);
            if (shown) {
                process.stdout.write(`${line}\n`);
            }
        }
    };
    try {
        const ended = new Promise((resolve, reject) => {
            child.once("error", reject);
            child.once("close", (code, signal) => resolve({ code, signal }));
        });
        const [{ code, signal }] = await Promise.all([ended, collect("stdout"), collect("stderr")]);
        return { code, signal, stdout: collected.stdout.join("\n"), stderr: collected.stderr };
    } catch (cause) {
        throw new Failure(`cannot run \`${program}\`: ${cause.message}`);
    } finally {
        clearTimeout(late);
        CANCELLED.forEach((signal) => process.off(signal, forward));
        resume();
    }
}

/** The errors and hints among what a program has said; if there are none, how it has ended. */
export function complaint({ code, signal, stderr }) {
    const first = stderr.findIndex((line) => line.startsWith("error: "));
    if (first < 0) {
        return signal ? `it was ended by ${signal}` : `it ended with status ${code}`;
    }
    return stderr.slice(first).join("\n").replace(/^error: /, "");
}

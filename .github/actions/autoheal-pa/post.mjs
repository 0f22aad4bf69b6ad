// Closes the tunnels. What goes wrong here is told, and fails no job: its own steps have ended as they have.

import { rmSync } from "node:fs";

import { complaint, environment, run } from "./program.mjs";
import { endGroup, Failure, startGroup, state, step, warning } from "./runner.mjs";

/** Longest that the manager is waited for, in milliseconds: sessions are ended within a few seconds. */
const LIMIT = 90_000;

async function post() {
    if (state("use") === "") {
        // There was nothing yet that could be ended.
        return;
    }
    const { name, program, folder, kubeconfig, places } = JSON.parse(state("use"));
    const env = environment();
    for (const [place, value] of Object.entries(places)) {
        if (value === null) {
            delete env[place];
        } else {
            env[place] = value;
        }
    }
    const call = (args) => run(program, [...args, `--name=${name}`], { env, limit: LIMIT });

    // Unless there is one here, what kept them from being opened has been shown.
    const log = state("log");
    if (log !== "") {
        startGroup("how the tunnels were");
        await call(["status"]);
        await call(["logs"]);
        endGroup();
    }

    const down = await call(["down", `--kubeconfig=${kubeconfig}`]);
    if (down.code !== 0) {
        throw new Failure(complaint(down));
    }
    // What is left of a manager that cannot be ended may tell why.
    rmSync(folder, { recursive: true, force: true });
    if (log !== "") {
        rmSync(log, { force: true });
    }
}

await step(post, (message) => warning(`the tunnels cannot be closed: ${message}`));

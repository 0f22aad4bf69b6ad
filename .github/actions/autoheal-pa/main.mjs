// Installs the program, opens the tunnels and tells the steps that follow where they are.

import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";

import { install } from "./install.mjs";
import { complaint, environment, run } from "./program.mjs";
import { addPath, endGroup, error, exportVariable, Failure, input, list, mask, saveState, setOutput, startGroup, step, variable } from "./runner.mjs";

const VERSION = /^\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?$/;

/** Arguments that would take the manager out of this action's hands. */
const OWN = ["--detach", "--github-env", "--kubeconfig", "--name"];

/** Reads the inputs. Everything wrong with them is said at once. */
function read() {
    const problems = [];
    const one = (name) => {
        const value = input(name);
        if (value.includes("\n")) {
            problems.push(`the input \`${name}\` has several lines`);
        }
        return value;
    };
    const inputs = {
        path: one("path"),
        version: one("version").replace(/^v/, ""),
        sha256: list("sha256").map((digest) => digest.toLowerCase()),
        // An action of the workflow's own repository has no other.
        repository: one("repository") || process.env.GITHUB_ACTION_REPOSITORY || process.env.GITHUB_REPOSITORY || "",
        token: one("token"),
    };
    if (inputs.path !== "") {
        for (const name of ["version", "sha256", "repository", "token"].filter((name) => input(name) !== "")) {
            problems.push(`the inputs \`path\` and \`${name}\` exclude each other: a path is not a release`);
        }
    } else {
        if (inputs.version === "") {
            const ref = process.env.GITHUB_ACTION_REF ?? "";
            inputs.version = ref.replace(/^v/, "");
            if (!ref.startsWith("v") || !VERSION.test(inputs.version)) {
                const used = ref === "" ? "which is of the workflow's own repository" : `used as \`${ref}\``;
                problems.push(`the input \`version\` is missing: this action, ${used}, does not tell which release is meant`);
            }
        } else if (!VERSION.test(inputs.version)) {
            problems.push(`the input \`version\` is not a version, such as \`0.1.0\`: \`${inputs.version}\``);
        }
        for (const digest of inputs.sha256.filter((digest) => !/^[0-9a-f]{64}$/.test(digest))) {
            problems.push(`the input \`sha256\` is to have 64 hexadecimal digits: \`${digest}\``);
        }
        if (!/^[\w.-]+\/[\w.-]+$/.test(inputs.repository)) {
            problems.push(`the input \`repository\` is to be \`OWNER/NAME\`: \`${inputs.repository}\``);
        }
    }

    const args = [];
    for (const name of ["config", "region", "role-arn", "role-session-name", "timeout"]) {
        const value = one(name);
        if (value !== "") {
            args.push(`--${name}=${value}`);
        }
    }
    for (const [name, flag] of [["bastion", "--bastion"], ["clusters", "--cluster"], ["forwards", "--forward"]]) {
        args.push(...list(name).map((value) => `${flag}=${value}`));
    }
    const others = list("args", "\n");
    for (const flag of OWN.filter((flag) => others.some((other) => other === flag || other.startsWith(`${flag}=`)))) {
        problems.push(`the input \`args\` has \`${flag}\`, which this action sets itself`);
    }
    if (!others.some((other) => /^--reason(?:=|$)/.test(other))) {
        const run = `${process.env.GITHUB_REPOSITORY} run ${process.env.GITHUB_RUN_ID}`;
        args.push(`--reason=${one("reason") || run}`);
    }
    args.push(...others);

    if (problems.length > 0) {
        throw new Failure(problems.join("\n"));
    }
    return { ...inputs, args };
}

/** Where a program looks for what it has written before: another step may change it for the post step. */
const PLACES = ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"];

/** Gives the steps that follow what `up` wrote for them. */
function tell(written, uses) {
    // The contexts of an earlier use in this job stay where kubectl finds them; those of this one come first.
    const before = (process.env.KUBECONFIG ?? "").split(":");
    const earlier = before.some((file) => file.startsWith(uses + path.sep)) ? before : [];
    for (const line of readFileSync(written, "utf8").split("\n").filter((line) => line !== "")) {
        const at = line.indexOf("=");
        const [name, value] = [line.slice(0, at), line.slice(at + 1)];
        const files = new Set([...value.split(":"), ...earlier]);
        exportVariable(name, name === "KUBECONFIG" ? [...files].join(":") : value);
    }
}

async function main() {
    const token = input("token");
    if (token !== "") {
        mask(token);
    }
    const inputs = read();

    // Jobs of one machine, and several uses in one job, do not meet.
    const name = `gh-${randomBytes(6).toString("hex")}`;
    const uses = path.join(variable("RUNNER_TEMP"), "autoheal-pa");
    const folder = path.join(uses, name);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const program = await install(inputs, folder);
    const version = await run(program, ["--version"]);
    if (version.code !== 0) {
        throw new Failure(`\`${program}\` does not run on this machine: ${complaint(version)}`);
    }
    addPath(path.dirname(program));

    const kubeconfig = path.join(folder, "kubeconfig.yaml");
    const written = path.join(folder, "env");
    writeFileSync(written, "", { mode: 0o600 });
    // Before there is anything to end, so that nothing is left if this is cancelled on the way.
    const places = Object.fromEntries(PLACES.map((place) => [place, process.env[place] ?? null]));
    saveState("use", JSON.stringify({ name, program, folder, kubeconfig, places }));

    const own = ["up", "--detach", "--github-env", `--name=${name}`, `--kubeconfig=${kubeconfig}`];
    const up = await run(program, [...own, ...inputs.args], { env: environment({ GITHUB_ENV: written }) });
    if (up.code !== 0) {
        startGroup("log of the manager");
        await run(program, ["logs", `--name=${name}`]);
        endGroup();
        throw new Failure(`the tunnels cannot be opened: ${complaint(up)}`);
    }
    tell(written, uses);

    const status = await run(program, ["status", "--json", `--name=${name}`], { shown: false });
    if (status.code !== 0) {
        throw new Failure(`the tunnels are ready, but the manager does not answer: ${complaint(status)}`);
    }
    const { log, tunnels } = JSON.parse(status.stdout);
    // A manager that was ready has a log, which is of no use to a machine that other jobs come to.
    saveState("log", log ?? "");
    const clusters = tunnels.filter((tunnel) => tunnel.forward === null);
    const forwards = tunnels.filter((tunnel) => tunnel.forward !== null);
    setOutput("name", name);
    setOutput("kubeconfig", kubeconfig);
    setOutput("contexts", clusters.map((tunnel) => tunnel.context).join("\n"));
    setOutput("forwards", forwards.map((tunnel) => `${tunnel.context}=127.0.0.1:${tunnel.port}`).join("\n"));
    setOutput("path", program);
}

await step(main, (message) => {
    error(message);
    process.exitCode = 1;
});

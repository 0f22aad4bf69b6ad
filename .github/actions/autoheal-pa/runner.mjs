// What the runner reads: commands on standard output, and the files that it names.
//
// Follows GitHub's documentation of workflow commands, and actions/toolkit, packages/core/src.

import { randomUUID } from "node:crypto";
import { appendFileSync } from "node:fs";

/** A failure that somebody can do something about: its message is all that is shown. */
export class Failure extends Error {}

/** The value of an input, without blanks around it; empty if it is not given. */
export function input(name) {
    return (process.env[`INPUT_${name.toUpperCase()}`] ?? "").trim();
}

/** The items of an input that has them one a line or, unless only lines count, separated by commas. */
export function list(name, separator = /[\n,]/) {
    const items = input(name).split(separator);
    return items.map((item) => item.trim()).filter((item) => item !== "");
}

/** A variable that the runner sets for every step. */
export function variable(name) {
    const value = process.env[name];
    if (!value) {
        throw new Failure(`${name} is not set: this runs only as a step of a job`);
    }
    return value;
}

function escapeData(text) {
    return text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
}

function escapeProperty(text) {
    return escapeData(text).replaceAll(":", "%3A").replaceAll(",", "%2C");
}

function command(name, text, properties = {}) {
    const pairs = Object.entries(properties).map(([key, value]) => `${key}=${escapeProperty(value)}`);
    const words = pairs.length === 0 ? name : `${name} ${pairs.join(",")}`;
    process.stdout.write(`::${words}::${escapeData(text)}\n`);
}

/** Keeps a value out of the log. */
export function mask(secret) {
    command("add-mask", secret);
}

export function error(text) {
    command("error", text, { title: "autoheal-pa" });
}

export function warning(text) {
    command("warning", text, { title: "autoheal-pa" });
}

export function say(text) {
    // An address may come from elsewhere, and is not to be taken for a command, of which the older form may begin anywhere.
    process.stdout.write(`autoheal-pa: ${text.replaceAll(/[\r\n]+/g, " ").replaceAll("##[", "# #[")}\n`);
}

export function startGroup(title) {
    command("group", title);
}

export function endGroup() {
    command("endgroup", "");
}

/**
 * Has the runner take no line for a command until the returned function is called: what a program prints may come from a
 * peer, and a log that begins with two colons could otherwise set variables of later steps.
 */
export function stopCommands() {
    const token = randomUUID();
    command("stop-commands", token);
    return () => command(token, "");
}

function append(file, name, value) {
    // As random as the toolkit's, so that no value can end its own entry.
    const delimiter = `ghadelimiter_${randomUUID()}`;
    appendFileSync(variable(file), `${name}<<${delimiter}\n${value}\n${delimiter}\n`);
}

/** Sets a variable of the steps that follow. */
export function exportVariable(name, value) {
    append("GITHUB_ENV", name, value);
}

export function setOutput(name, value) {
    append("GITHUB_OUTPUT", name, value);
}

/** Hands a value to the post step. */
export function saveState(name, value) {
    append("GITHUB_STATE", name, value);
}

/** What was handed to the post step; empty if nothing was. */
export function state(name) {
    return process.env[`STATE_${name}`] ?? "";
}

/** Puts a folder before all others on the PATH of the steps that follow. */
export function addPath(folder) {
    appendFileSync(variable("GITHUB_PATH"), `${folder}\n`);
}

/** Runs a step to its end; what goes wrong is shown where the job is shown, and `failed` is told. */
export async function step(body, failed) {
    try {
        await body();
    } catch (cause) {
        // Of anything unexpected whoever mends this action needs to know where it was.
        failed(cause instanceof Failure ? cause.message : `unexpected: ${cause?.stack ?? cause}`);
    }
}

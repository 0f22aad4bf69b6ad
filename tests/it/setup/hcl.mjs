// Reads configurations of Terraform with HashiCorp's own parser and formatter: `hcl.mjs FILE…` fails for one that the formatter
// would change, and prints what is in all of them as JSON, by file.

import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The folder of the packages is not above this one.
const packages = createRequire(process.env.HCL + "/");
const { format } = packages("@cdktf/hcl-tools");
const { parse } = packages("@cdktf/hcl2json");

const read = {};
for (const file of process.argv.slice(2)) {
  const text = readFileSync(file, "utf8");
  assert.strictEqual(await format(text), text, `${file} is not formatted`);
  read[file] = await parse(file, text);
}
// A pipe takes it in parts.
process.stdout.write(JSON.stringify(read) + "\n", () => process.exit(0));

// Two hundred callers at once on one endpoint; meanwhile one more does the rest of the operations there.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { DIRECT, TEXT, isFinal, noneWasAnsweredEarly, refused, sdk, submittedOnceEach } from "./witness.mjs";

// By itself the API takes 200 submissions at once, the one more's among them, and 200 polls a second.
// Through a gateway they want more, but not for the 7.5 s after which a full burst has its pause: it is
// as long as this SDK has patience.
const [CALLERS, PAUSE, WORK] = DIRECT ? [199, 1_000, 2] : [200, 200, 4];
// A busy machine may take the SDK's own three seconds for itself. A gateway knows the SDK, and refuses
// what would take it so long.
const PATIENCE = 30_000;

const endpoint = sdk().endpoint("crowd");
const jobs = [];
let number = 0;
let done = false;

const work = (script) => ({ number: (number += 1), text: TEXT, ...script });

async function run(input) {
  const { id } = await endpoint.run({ input }, PATIENCE);
  jobs.push(id);
  return id;
}

async function caller() {
  // Its first call ends before its job does.
  let input = work({ sleep: 1.5 });
  let answer = await endpoint.runSync({ input }, 1_000);
  jobs.push(answer.id);
  assert.equal(answer.status, "COMPLETED");
  assert.deepEqual(answer.output, input);
  input = work({ sleep: WORK });
  const id = await run(input);
  while (!isFinal((answer = await endpoint.status(id, PATIENCE)))) await sleep(PAUSE);
  assert.equal(answer.status, "COMPLETED");
  assert.deepEqual(answer.output, input);
}

async function theRest() {
  for (let turn = 0; turn === 0 || !done; turn += 1) {
    const health = await endpoint.health(PATIENCE);
    assert.deepEqual([health.jobs.failed, health.jobs.inQueue], [0, 0]);
    const streaming = await run(work({ n: 3, gap: 0.1 }));
    const running = await run(work({ sleep: 600 }));
    const chunks = [];
    for await (const { output } of endpoint.stream(streaming)) chunks.push(output);
    assert.deepEqual(chunks, [0, 1, 2]);
    assert.equal((await endpoint.cancel(running, PATIENCE)).status, "CANCELLED");
    const ended = await endpoint.statusSync(running);
    assert.deepEqual([ended.status, ended.completed], ["CANCELLED", true]);
    // As often as there is a budget for.
    if (turn < 2) {
      assert.deepEqual(await endpoint.purgeQueue(PATIENCE), { removed: 0, status: "completed" });
    }
  }
}

const rest = theRest();
await Promise.all(Array.from({ length: CALLERS }, caller)).finally(() => (done = true));
await rest;

const held = noneWasAnsweredEarly();
assert.ok(held >= CALLERS, `${held} calls were held to their end`);
assert.deepEqual(await refused(), {});
await submittedOnceEach(jobs);
console.log(`${jobs.length} jobs, each submitted once; ${held} calls held to their end`);

// Every operation of the official JavaScript SDK.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import {
  DIRECT,
  TEXT,
  arrived,
  calls,
  health,
  noneWasAnsweredEarly,
  refusal,
  refused,
  sdk,
  submittedOnceEach,
} from "./witness.mjs";

const jobs = [];
let number = 0;

const work = (script = {}) => ({ number: (number += 1), text: TEXT, ...script });

async function run(endpoint, input) {
  const { id, status } = await endpoint.run({ input });
  assert.equal(status, "IN_QUEUE");
  jobs.push(id);
  return id;
}

async function runSync(endpoint, input, timeout) {
  const answer = await endpoint.runSync({ input }, timeout);
  jobs.push(answer.id);
  return answer;
}

async function until(endpoint, id, wanted) {
  for (;;) {
    const answer = await endpoint.status(id);
    if (answer.status === wanted) return answer;
    assert.ok(!answer.completed, `${wanted} was awaited: ${JSON.stringify(answer)}`);
    await sleep(100);
  }
}

async function results() {
  const endpoint = sdk().endpoint("results");
  const input = work({ sleep: 0.5 });
  let id = await run(endpoint, input);
  let answer = await until(endpoint, id, "COMPLETED");
  assert.deepEqual(answer.output, input);
  assert.deepEqual([answer.id, answer.completed, answer.succeeded], [id, true, true]);
  // To the byte as this SDK has written it.
  const { text } = calls.findLast(({ url }) => url.pathname.endsWith(`/status/${id}`));
  assert.ok(text.includes(JSON.stringify(input)), text);
  // FAILED is no exception to this SDK.
  id = await run(endpoint, work({ fail: TEXT }));
  answer = await until(endpoint, id, "FAILED");
  assert.deepEqual([answer.error, answer.completed, answer.succeeded], [TEXT, true, false]);
  answer = await runSync(endpoint, work({ fail: TEXT }));
  assert.deepEqual([answer.status, answer.error, answer.succeeded], ["FAILED", TEXT, false]);
  assert.deepEqual(await endpoint.health(), health({ completed: 1, failed: 2 }));
}

// The calls are those that the holds explain: one that ends early is repeated at once, and for ever.
async function holds() {
  const endpoint = sdk().endpoint("holds");
  const polls = () => arrived("holds", "status");

  // runSync, whose job ends while the first call is held.
  const input = work({ sleep: 2 });
  let answer = await runSync(endpoint, input);
  assert.deepEqual([answer.status, answer.completed, answer.succeeded], ["COMPLETED", true, true]);
  assert.deepEqual(answer.output, input);
  assert.equal(await polls(), 0);

  // Whose job outlives it: 1 s of /runsync, and then a /status-sync of 1 s each for as long as less than
  // a second has passed, or just one by a clock of milliseconds.
  answer = await runSync(endpoint, work({ sleep: 600 }), 1_000);
  const long = answer.id;
  assert.deepEqual([answer.status, answer.completed], ["IN_PROGRESS", false]);
  let asked = await polls();
  assert.ok(asked >= 1 && asked <= 2, `${asked} calls`);

  // statusSync, held to its end, and then to the job's.
  answer = await endpoint.statusSync(long, 1_000);
  assert.deepEqual([answer.status, answer.completed], ["IN_PROGRESS", false]);
  const ended = endpoint.statusSync(long);
  assert.equal((await endpoint.cancel(long)).status, "CANCELLED");
  assert.equal((await ended).status, "CANCELLED");

  // runSync, whose job takes some seconds: 2 s of /runsync, 1 s of /status-sync, and what is left.
  asked = await polls();
  answer = await runSync(endpoint, work({ sleep: 3.5 }), 2_000);
  assert.equal(answer.status, "COMPLETED");
  asked = (await polls()) - asked;
  assert.ok(asked >= 1 && asked <= 2, `${asked} calls`);
}

async function chunks(endpoint, id) {
  const found = [];
  for await (const { output } of endpoint.stream(id)) found.push(output);
  return found;
}

// Complete and in order, also before a failure, and no call for nothing.
async function streams() {
  const endpoint = sdk().endpoint("streams");
  let id = await run(endpoint, work({ sleep: 1.5, n: 10, gap: 0.25 }));
  assert.deepEqual(await chunks(endpoint, id), [...Array(10).keys()]);
  const asked = await arrived("streams", "status");
  assert.ok(asked <= 11, `${asked} calls`);
  assert.equal((await endpoint.status(id)).status, "COMPLETED");
  id = await run(endpoint, work({ n: 3, fail: "late" }));
  assert.deepEqual(await chunks(endpoint, id), [0, 1, 2]);
  assert.equal((await endpoint.status(id)).status, "FAILED");
}

// health, and cancel and purgeQueue of what waits and of what runs.
async function queue() {
  const endpoint = sdk().endpoint("queue");
  const running = await run(endpoint, work({ sleep: 600 }));
  const waiting = [];
  for (let count = 0; count < 4; count += 1) waiting.push(await run(endpoint, work()));
  await until(endpoint, running, "IN_PROGRESS");
  for (const id of waiting) assert.equal((await endpoint.status(id)).status, "IN_QUEUE");
  assert.deepEqual(await endpoint.health(), health({ inProgress: 1, inQueue: 4 }));
  const cancelled = waiting.pop();
  assert.deepEqual(await endpoint.cancel(cancelled), { id: cancelled, status: "CANCELLED" });
  assert.equal((await endpoint.status(cancelled)).status, "CANCELLED");
  assert.deepEqual(await chunks(endpoint, cancelled), []);
  assert.deepEqual(await endpoint.health(), health({ inProgress: 1, inQueue: 3 }));

  assert.deepEqual(await endpoint.purgeQueue(), { removed: 3, status: "completed" });
  assert.deepEqual(await endpoint.health(), health({ inProgress: 1 }));
  assert.equal((await endpoint.status(running)).status, "IN_PROGRESS");
  let answer = await endpoint.cancel(running);
  assert.deepEqual([answer.id, answer.status], [running, "CANCELLED"]);
  assert.equal((await endpoint.status(running)).status, "CANCELLED");
  assert.deepEqual(await endpoint.health(), health({}));
  // Two purges in ten seconds are all there are.
  assert.deepEqual(await endpoint.purgeQueue(), { removed: 0, status: "completed" });
  answer = await refusal(endpoint.purgeQueue());
  assert.equal(answer.status, 429);
  assert.ok(DIRECT || Number(answer.headers.get("retry-after")) >= 1);

  await isUnknown(endpoint, waiting[0]);
}

async function isUnknown(endpoint, id) {
  for (const operation of ["status", "statusSync", "cancel"]) {
    assert.equal((await refusal(endpoint[operation](id))).status, 404);
  }
  assert.equal((await refusal(chunks(endpoint, id))).status, 404);
}

// A job that never was, and a key that is not accepted.
async function strangers() {
  await isUnknown(sdk().endpoint("results"), "unknown-u1");
  const stranger = sdk("another").endpoint("results");
  const input = work();
  assert.equal((await refusal(stranger.health())).status, 401);
  assert.equal((await refusal(stranger.run({ input }))).status, 401);
  assert.equal((await refusal(stranger.runSync({ input }))).status, 401);
}

await Promise.all([results(), holds(), streams(), queue(), strangers()]);

const held = noneWasAnsweredEarly();
assert.ok(held >= 4, `${held} calls were held to their end`);
assert.deepEqual(await refused(), DIRECT ? { "queue purge-queue": { rate: 1 } } : {});
await submittedOnceEach(jobs);
console.log(`${jobs.length} jobs, each submitted once; ${held} calls held to their end`);

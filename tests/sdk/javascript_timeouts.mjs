// The SDK gives a submission three seconds. Who does not get its turn is told so before: nobody's timeout
// leaves a job that nobody knows of.

import assert from "node:assert/strict";

import { BASE_URL, KEY, faults, refused, sdk, submittedOnceEach } from "./witness.mjs";

const jobs = [];
let number = 0;

// The id, or the answer that refuses it. Anything else, a timeout above all, is a failure.
async function submit(endpoint) {
  try {
    const { id } = await sdk().endpoint(endpoint).run({ input: { number: (number += 1) } });
    jobs.push(id);
    return "submitted";
  } catch (error) {
    assert.equal(error.response?.status, 429, String(error));
    return error.response.data.outcome;
  }
}

async function crowd(callers, endpoint) {
  const ended = await Promise.all(Array.from({ length: callers }, () => submit(endpoint)));
  const count = (outcome) => ended.filter((each) => each === outcome).length;
  return Object.fromEntries(ended.map((outcome) => [outcome, count(outcome)]));
}

// One more caller, who has patience: everybody before it has got a turn or is gone.
async function last(endpoint) {
  const answer = await fetch(`${BASE_URL}/v2/${endpoint}/run`, {
    method: "POST",
    headers: { authorization: `Bearer ${KEY}` },
    body: JSON.stringify({ input: { number: (number += 1) } }),
  });
  jobs.push((await answer.json()).id);
}

// Every submission takes a tenth of a second. What cannot be in time is refused at once.
await faults({ latency_ms: 100, group: "run" });
const few = await crowd(60, "few");
assert.ok(few.submitted >= 5 && few.out_of_reach > 0, JSON.stringify(few));
// What could have been, at its time.
const slow = await crowd(40, "slow");
assert.ok(slow.submitted > 0 && slow.wait_expired > 0, JSON.stringify(slow));

await Promise.all([last("few"), last("slow")]);
assert.deepEqual(await refused(), {});
await submittedOnceEach(jobs);
console.log(`${jobs.length} jobs, each known to its caller`);

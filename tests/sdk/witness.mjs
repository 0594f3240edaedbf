// The emulated API as a witness, and what every script of this folder is given: see witness.py.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const KEY = "sdk-test-key";
// Latin, an escape or two, a combining mark, right to left, beyond the BMP, and a joined emoji.
export const TEXT = 'naïve "\\" \t\u0000 e\u0301 日本語 עברית 𝒳 👩‍🔬 \u2028';

export const [BASE_URL, EMULATOR_URL] = process.argv.slice(2);
export const DIRECT = BASE_URL === EMULATOR_URL;

// Installed outside of this tree, where an `import` would look for it.
const installed = createRequire(`${process.env.PODGATE_TEST_NODE_MODULES}/`);
const { default: runpodSdk } = await import(pathToFileURL(installed.resolve("runpod-sdk")));

export const sdk = (key = KEY) => runpodSdk(key, { baseUrl: `${BASE_URL}/v2` });

const send = globalThis.fetch;

// Every exchange of this process.
export const calls = [];
globalThis.fetch = async (url, options) => {
  const began = performance.now();
  const answer = await send(url, options);
  const text = await answer.clone().text();
  const took = performance.now() - began;
  calls.push({ url: new URL(url), took, status: answer.status, text });
  return answer;
};

// What the emulator is asked behind the SDK's back is no call of it.
export async function ask(path, method = "GET", body = undefined) {
  const headers = { authorization: `Bearer ${KEY}` };
  const answer = await send(`${EMULATOR_URL}${path}`, { method, headers, body });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

export const stats = () => ask("/__emulator/stats");

export const faults = (wanted) => ask("/__emulator/faults", "POST", JSON.stringify(wanted));

export async function arrived(endpoint, group) {
  return (await stats()).endpoints[endpoint][group].arrived;
}

// Every group that was refused anything: why, and how often.
export async function refused() {
  const found = {};
  for (const [endpoint, groups] of Object.entries((await stats()).endpoints)) {
    for (const [group, seen] of Object.entries(groups)) {
      const reasons = Object.entries(seen.refused).filter(([, times]) => times > 0);
      if (reasons.length > 0) found[`${endpoint} ${group}`] = Object.fromEntries(reasons);
    }
  }
  return found;
}

// Every submission that arrived is one of `jobs`, which its caller knows of.
export async function submittedOnceEach(jobs) {
  assert.equal(new Set(jobs).size, jobs.length);
  const { submissions } = await stats();
  assert.deepEqual(submissions, { distinct: jobs.length, repeated: 0 });
}

// The whole answer of an endpoint with one worker.
export function health({ completed = 0, failed = 0, inProgress = 0, inQueue = 0 }) {
  const idle = 1 - inProgress;
  return {
    jobs: { completed, failed, inProgress, inQueue, retried: 0 },
    workers: { idle, initializing: 0, ready: idle, running: inProgress, throttled: 0, unhealthy: 0 },
  };
}

// The answer that the SDK rejects with.
export async function refusal(call) {
  const error = await call.then(
    (answer) => assert.fail(`not refused: ${JSON.stringify(answer)}`),
    (error) => error,
  );
  assert.ok(error.response, `no answer: ${error}`);
  assert.equal(error.response.data.status, error.response.status);
  return error.response;
}

const FINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
export const isFinal = ({ status }) => FINAL.includes(status);

// A held call that ends before its time, and before the job, makes the SDK ask again at once and for
// ever. How many were held to their end.
export function noneWasAnsweredEarly() {
  const held = /\/(runsync|status-sync|stream)(\/|$)/;
  let expired = 0;
  for (const { url, took, status, text } of calls) {
    if (!held.test(url.pathname) || status !== 200) continue;
    const answer = JSON.parse(text);
    if (isFinal(answer) || answer.stream?.length > 0) continue;
    // 10 s is how long a stream is held that names no other time.
    const wait = Number(url.searchParams.get("wait") ?? 10_000);
    assert.ok(took >= wait - 1, `${url} was answered after ${took} ms: ${text}`);
    expired += 1;
  }
  return expired;
}

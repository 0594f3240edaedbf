// podgate as a user starts it, an emulated API behind it, and a browser before it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const modules = createRequire(join(process.env.PODGATE_TEST_PAGE_MODULES, "x"));
const { chromium } = modules("playwright-core");
export const axe = readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");

/** No test waits longer for anything, in milliseconds. */
export const PATIENCE = 30_000;

/** Returns what `holds` returns once that is something. */
export async function until(what, holds) {
  const end = Date.now() + PATIENCE;
  let last;
  while (Date.now() < end) {
    last = await holds();
    if (last) return last;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`never: ${what}`);
}

/** A process of ours, once it says that it is ready; `addresses` are those it names. */
export async function start(...arguments_) {
  const child = spawn(process.env.PODGATE, arguments_, { stdio: ["ignore", "ignore", "pipe"] });
  const lines = createInterface({ input: child.stderr });
  const said = [];
  const ready = new Promise((resolve, reject) => {
    lines.on("line", (line) => {
      said.push(line);
      if (line.includes(" ready on http://")) resolve(line);
    });
    child.on("exit", () => reject(new Error(`it ended: ${said.join("\n")}`)));
  });
  const addresses = (await ready).match(/http:\/\/[\d.:]+/g);
  const end = async (signal) => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, "exit");
    child.kill(signal);
    await gone;
  };
  return { addresses, child, end };
}

/** podgate with this configuration before an emulator, and calls through it. */
export class House {
  static async open(settings, { emulator = [] } = {}) {
    const house = new House();
    house.folder = mkdtempSync(join(tmpdir(), "podgate-page-"));
    house.emulator = await start("emulate", "--listen", "127.0.0.1:0", ...emulator);
    house.file = join(house.folder, "podgate.yaml");
    writeFileSync(house.file, `log: { access: false }\nupstream: { url: "${house.emulator.addresses[0]}" }\n${settings}`);
    await house.serve("127.0.0.1:0");
    return house;
  }

  async serve(admin) {
    this.podgate = await start("serve", "--config", this.file, "--listen", "127.0.0.1:0", "--admin", admin, "--workers", "1");
    [this.door, this.admin] = this.podgate.addresses;
  }

  /** The status of the answer; 0 if there was none. */
  call(key, method, path, body) {
    return new Promise((resolve) => {
      const headers = { authorization: `Bearer ${key}`, "content-type": "application/json", "content-length": Buffer.byteLength(body ?? "") };
      const request = http.request(`${this.door}/v2/${path}`, { method, headers, agent: false }, (answer) => {
        answer.resume();
        answer.on("end", () => resolve(answer.statusCode));
        answer.on("error", () => resolve(0));
      });
      request.on("error", () => resolve(0));
      request.end(body);
    });
  }

  run(key, endpoint) {
    return this.call(key, "POST", `${endpoint}/run`, '{"input":{"sleep":0}}');
  }

  async faults(faults) {
    const answer = await fetch(`${this.emulator.addresses[0]}/__emulator/faults`, { method: "POST", body: JSON.stringify(faults) });
    if (!answer.ok) throw new Error(await answer.text());
  }

  async lanes() {
    return (await fetch(`${this.admin}/lanes`)).json();
  }

  async lane(endpoint, group) {
    return (await this.lanes()).find((lane) => lane.endpoint === endpoint && lane.group === group);
  }

  /** The sum of a metric's series. */
  async metric(name) {
    const page = await (await fetch(`${this.admin}/metrics`)).text();
    const series = page.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return series.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  async close() {
    await this.podgate.end("SIGKILL");
    await this.emulator.end("SIGKILL");
    rmSync(this.folder, { recursive: true });
  }
}

/** A stream of `/events` that nobody looks at. */
export async function listener(admin) {
  const stop = new AbortController();
  const answer = await fetch(`${admin}/events`, { signal: stop.signal });
  if (!answer.ok) return null;
  const reader = answer.body.getReader();
  (async () => { while (!(await reader.read()).done); })().catch(() => {});
  return () => stop.abort();
}

export async function browser() {
  const calm = ["quic", "background-networking", "component-update", "sync", "gpu"].map((what) => `--disable-${what}`);
  return chromium.launch({
    executablePath: process.env.PODGATE_TEST_CHROMIUM,
    args: ["--no-sandbox", "--no-first-run", ...calm],
  });
}

/** A page of its own, and everything about it that should not have happened. */
export async function visit(browser, house, { hash = "", before, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const faults = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) faults.push(message.text()); });
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "data:" && url.origin !== house.admin) faults.push(`asked for ${url}`);
  });
  await page.addInitScript(() => {
    window.violations = [];
    addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  if (before) await before(page);
  await page.goto(`${house.admin}/${hash}`);
  return { page, faults, violations: () => page.evaluate(() => window.violations), close: () => context.close() };
}

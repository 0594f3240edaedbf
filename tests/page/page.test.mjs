// The page in a real browser, before a podgate that works: what it shows is what /lanes says, it can
// be used without a mouse or without eyes, and it says so when it knows nothing.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { House, PATIENCE, axe, browser as launch, listener, until, visit } from "./house.mjs";

const KEYS = ["key-a", "key-b", "key-c"];

let browser;
before(async () => { browser = await launch(); });
after(() => browser.close());

const text = (page, selector) => page.locator(selector).innerText();
const lane = (page, endpoint, group) => page.getByRole("article", { name: `${endpoint} ${group}`, exact: true });
const row = (page, endpoint, group) => page.locator("#table tbody tr").filter({ has: page.locator(`th span:text-is("${endpoint}")`) }).filter({ has: page.locator(`th span:text-is("${group}")`) });
const live = (page) => page.locator("#chip", { hasText: "live" }).waitFor();

/** The next snapshot is shown: the graphs have moved. */
async function tick(page) {
  const graph = () => page.locator("#strip .line").first().getAttribute("d");
  const was = await graph();
  await until("the next snapshot", async () => (await graph()) !== was);
}

/** Runs `inside` with a page, which must not do what it should not. */
async function looking(house, options, inside) {
  const seen = await visit(browser, house, options);
  try {
    await inside(seen.page, seen);
    assert.deepEqual(seen.faults, []);
    assert.deepEqual(await seen.violations(), []);
  } finally {
    await seen.close();
  }
}

/** What axe finds, in words. */
async function judged(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
}

describe("a podgate at work", () => {
  let house;
  before(async () => {
    house = await House.open(`
groups:
  run: { rate: { requests: 60, per: 20m, burst: 60 }, concurrency: 6, max_wait: 10m, response_timeout: 10m }
  cancel: { rate: { requests: 4, per: 20m }, max_wait: 1s }
`);
    // Callers of one address are told apart by keys that the upstream has accepted.
    for (const key of KEYS) assert.equal(await house.call(key, "GET", "llama/health"), 200);
    for (let n = 0; n < 20; n++) assert.equal(await house.run(KEYS[n % 3], "llama"), 200);
    for (let n = 0; n < 6; n++) await house.call(KEYS[0], "POST", "whisper/cancel/x");
    assert.equal(await house.call(KEYS[0], "GET", "no-such-thing"), 404);
    // From here on the upstream says nothing, so that everything stays as it is.
    await house.faults({ stall: true, group: "run" });
    for (let n = 0; n < 6; n++) house.run(KEYS[0], "llama");
    await until("all permits are out", async () => (await house.lane("llama", "run")).permits.in_use === 6);
    for (const [key, times] of [[KEYS[0], 9], [KEYS[1], 3], [KEYS[2], 1]]) for (let n = 0; n < times; n++) house.run(key, "llama");
    await until("thirteen wait", async () => (await house.lane("llama", "run")).waiting.total === 13);
  });
  after(() => house.close());

  test("the cards say what /lanes says", () => looking(house, {}, async (page) => {
    await live(page);
    const told = await house.lane("llama", "run");
    assert.deepEqual([told.window.used, told.permits.in_use, told.waiting.total], [26, 6, 13]);
    const card = lane(page, "llama", "run");
    const values = await card.locator(".gauge .value").allInnerTexts();
    assert.equal(values[0], `${told.window.used} / ${told.window.limit} in 20 min`);
    assert.equal(values[1], `${told.permits.in_use} / ${told.permits.limit}`);
    assert.match(values[2], new RegExp(`^${told.waiting.total} oldest `));
    const callers = await card.locator(".facts dd").first().locator("li").allInnerTexts();
    const waiting = Object.entries(told.waiting.flows).map(([name, n]) => `${name.slice(0, 6)} ${n}`);
    assert.deepEqual(callers.toSorted(), waiting.toSorted());
    assert.deepEqual(callers.map((caller) => Number(caller.split(" ")[1])), [9, 3, 1]);
    const cards = await page.getByRole("article").count();
    assert.equal(cards, (await house.lanes()).length);
    assert.equal(await text(page, "#count"), String(cards));
  }));

  test("the table says what /lanes says", () => looking(house, { hash: "#view=table" }, async (page) => {
    await row(page, "llama", "run").waitFor();
    for (const told of await house.lanes()) {
      const cells = await row(page, told.endpoint, told.group).locator("th, td").allInnerTexts();
      const outOf = (n, limit) => (limit === null ? "no limit" : `${n} / ${limit}`);
      assert.deepEqual(cells.slice(0, 5).map((cell) => cell.trim()), [
        told.endpoint, told.group,
        outOf(told.window.used, told.window.effective_limit),
        outOf(told.permits.in_use, told.permits.limit),
        String(told.waiting.total),
      ]);
    }
  }));

  test("the promises and the endings say what /metrics says", () => looking(house, {}, async (page) => {
    await live(page);
    assert.equal(await text(page, "#over .figure"), String(await house.metric("podgate_upstream_throttled_total")));
    assert.equal(await text(page, "#over .verdict"), "none since podgate started");
    assert.equal(await page.locator("#over").getAttribute("data-kept"), "yes");
    const idle = await house.metric("podgate_idle_budget_seconds_total");
    assert.equal(await text(page, "#idle .figure"), `${idle.toFixed(3)} s`);
    const rows = await page.locator("#ends-rows tr").allInnerTexts();
    const ends = Object.fromEntries(rows.map((row) => row.split("\t").map((cell) => cell.trim())));
    const metrics = await (await fetch(`${house.admin}/metrics`)).text();
    const counted = {};
    for (const [, outcome, n] of metrics.matchAll(/^podgate_requests_total\{.*outcome="(\w+)"\} (\d+)$/gm)) {
      const word = outcome.replaceAll("_", " ");
      if (Number(n)) counted[word] = (counted[word] ?? 0) + Number(n);
    }
    assert.deepEqual(ends, Object.fromEntries(Object.entries(counted).map(([word, n]) => [word, String(n)])));
    assert.ok(counted["no route"] && counted.forwarded && counted["out of reach"], JSON.stringify(counted));
    const refused = await lane(page, "whisper", "cancel").locator(".facts dd").nth(1).locator("li").first().innerText();
    assert.equal(refused, `out of reach ${counted["out of reach"]}`);
  }));

  test("what happens is shown without a reload", () => looking(house, {}, async (page) => {
    await live(page);
    const card = lane(page, "llama", "status");
    await page.evaluate(() => { window.same = true; });
    const used = async () => (await card.count()) && Number((await card.locator(".gauge .value").first().innerText()).split(" ")[0].replace(",", ""));
    const was = (await used()) || 0;
    for (let n = 0; n < 7; n++) await house.call(KEYS[0], "GET", "llama/status/none");
    await until("seven more are shown", async () => (await used()) >= was + 7);
    assert.equal(await page.evaluate(() => window.same), true);
    // A line needs two points.
    await until("there is a graph", async () => (await lane(page, "llama", "run").locator(".spark .line").first().getAttribute("d")).includes("L"));
  }));

  test("the view can be switched and the table sorted", () => looking(house, {}, async (page) => {
    await live(page);
    await page.getByRole("radio", { name: "Table" }).check();
    await row(page, "llama", "run").waitFor();
    assert.equal(await page.locator("#cards").isVisible(), false);
    assert.equal(new URL(page.url()).hash, "#view=table");
    const first = () => page.locator("#table tbody tr").first().locator("th").allInnerTexts();
    const heading = page.getByRole("columnheader", { name: "Waiting" });
    await heading.getByRole("button").click();
    assert.equal(await heading.getAttribute("aria-sort"), "descending");
    assert.deepEqual(await first(), ["llama", "run"]);
    await heading.getByRole("button").click();
    assert.equal(await heading.getAttribute("aria-sort"), "ascending");
    assert.notDeepEqual(await first(), ["llama", "run"]);
    await page.getByRole("radio", { name: "Cards" }).check();
    await lane(page, "llama", "run").waitFor();
    assert.equal(await page.locator("#table").isVisible(), false);
  }));

  test("the filter narrows everything below it, and stands in the address", () => looking(house, {}, async (page) => {
    await live(page);
    await page.getByLabel("Endpoint", { exact: true }).fill("WHIS");
    await until("one is left", async () => (await page.getByRole("article").count()) === 1);
    assert.match(await text(page, "#count"), /^1 of \d+$/);
    assert.equal(await text(page, "#ends-of"), "endpoints with “WHIS”");
    assert.equal(new URL(page.url()).hash, "#endpoint=WHIS");
    await page.getByLabel("Endpoint", { exact: true }).fill("<img src=x onerror=alert(1)>");
    await page.locator("#unmatched").waitFor();
    assert.equal(await text(page, "#sought"), "<img src=x onerror=alert(1)>");
    assert.equal(await page.locator("img").count(), 0);
    await page.getByRole("link", { name: "Show all" }).click();
    await lane(page, "llama", "run").waitFor();
    assert.equal(await page.getByLabel("Endpoint", { exact: true }).inputValue(), "");
    await page.getByRole("link", { name: "whisper", exact: true }).click();
    await until("its heading leads to it", async () => (await page.getByRole("article").count()) === 1);
    await page.goBack();
    await lane(page, "llama", "run").waitFor();
  }));

  test("a link opens what it names", () => looking(house, { hash: "#endpoint=llama&view=table&sort=-used" }, async (page) => {
    await row(page, "llama", "run").waitFor();
    const endpoints = await page.locator("#table tbody th:first-child").allInnerTexts();
    assert.ok(endpoints.length > 0 && endpoints.every((endpoint) => endpoint === "llama"), endpoints.join());
    assert.equal(await page.getByLabel("Endpoint", { exact: true }).inputValue(), "llama");
    assert.equal(await page.getByRole("columnheader", { name: "Window" }).getAttribute("aria-sort"), "descending");
    assert.equal(await page.getByRole("radio", { name: "Table" }).isChecked(), true);
  }));

  test("everything can be done with the keyboard, and the focus is seen and stays", () => looking(house, {}, async (page) => {
    await live(page);
    const focus = () => page.evaluate(() => {
      const node = document.activeElement;
      const ring = getComputedStyle(node.matches("[type=radio]") ? node.nextElementSibling : node);
      return [node.id || node.value || node.textContent, ring.outlineStyle];
    });
    const tab = async () => { await page.keyboard.press("Tab"); return focus(); };
    assert.deepEqual(await tab(), ["theme", "solid"]);
    await page.keyboard.press("Enter");
    assert.equal(await text(page, "#theme"), "Theme: light");
    assert.deepEqual(await tab(), ["filter", "solid"]);
    await page.keyboard.type("llama");
    assert.deepEqual(await tab(), ["cards", "solid"]);
    await page.keyboard.press("ArrowRight");
    await row(page, "llama", "run").waitFor();
    assert.deepEqual(await focus(), ["table", "solid"]);
    assert.deepEqual(await tab(), ["table", "solid"]);
    assert.equal((await tab())[0], "Endpoint");
    for (let n = 0; n < 4; n++) await tab();
    await page.keyboard.press("Enter");
    assert.equal(await page.getByRole("columnheader", { name: "Waiting" }).getAttribute("aria-sort"), "descending");
    for (let n = 0; n < 2; n++) await tick(page);
    assert.deepEqual(await focus(), ["Waiting", "solid"]);
  }));

  test("it is light or dark as the system is, unless it is told, and remembers what it was told", () => looking(house, { colorScheme: "dark" }, async (page) => {
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await ground();
    await page.emulateMedia({ colorScheme: "light" });
    const light = await ground();
    assert.notEqual(dark, light);
    await page.locator("#theme").click();
    await page.locator("#theme").click();
    assert.equal(await text(page, "#theme"), "Theme: dark");
    assert.equal(await ground(), dark);
    await page.reload();
    assert.equal(await ground(), dark);
    await page.locator("#theme").click();
    assert.equal(await ground(), light);
  }));

  test("a telephone shows it without scrolling sideways", async () => {
    for (const hash of ["#", "#view=table"]) {
      await looking(house, { hash, viewport: { width: 390, height: 844 }, isMobile: true }, async (page) => {
        await live(page);
        assert.equal(await page.evaluate(() => document.scrollingElement.scrollWidth), 390);
        const small = await page.locator("button:visible, input:visible").evaluateAll((nodes) => nodes.filter((node) => node.getBoundingClientRect().height < 24).map((node) => node.outerHTML));
        assert.deepEqual(small, []);
      });
    }
  });

  test("nothing moves where that was asked for", () => looking(house, { reducedMotion: "reduce" }, async (page) => {
    await live(page);
    const moves = await page.locator(".track i").evaluateAll((nodes) => nodes.map((node) => getComputedStyle(node).transitionDuration));
    assert.ok(moves.length && moves.every((span) => span === "0s"), moves.join());
  }));

  test("numbers that change are not read out", () => looking(house, {}, async (page) => {
    await live(page);
    await page.evaluate(() => {
      window.said = [];
      for (const node of document.querySelectorAll("[aria-live], [role=status], [role=alert]")) {
        new MutationObserver(() => window.said.push(node.textContent)).observe(node, { subtree: true, childList: true, characterData: true });
      }
    });
    for (let n = 0; n < 3; n++) await tick(page);
    assert.deepEqual(await page.evaluate(() => window.said), []);
  }));

  test("axe finds nothing to complain of", async () => {
    const phone = { viewport: { width: 390, height: 844 }, isMobile: true };
    for (const options of [{}, { colorScheme: "dark" }, { hash: "#view=table&sort=-waiting" }, { hash: "#view=table", colorScheme: "dark" }, phone, { hash: "#endpoint=nobody" }]) {
      // axe itself makes scripts and styles of text, which the policy rightly refuses.
      const seen = await visit(browser, house, { ...options, bypassCSP: true });
      await live(seen.page);
      await seen.page.locator("summary").click();
      assert.deepEqual(await judged(seen.page), [], JSON.stringify(options));
      await seen.close();
    }
  });

  test("one page too many says so, and is served when there is room", async () => {
    const stops = [];
    // Pages that were closed just now may still have theirs.
    await until("every place is taken", async () => {
      for (let stop; (stop = await listener(house.admin)); ) stops.push(stop);
      return stops.length === 16;
    });
    const seen = await visit(browser, house);
    await seen.page.locator("#banner", { hasText: "it serves 16 of these pages at once" }).waitFor();
    for (const stop of stops) stop();
    await until("there is room", async () => {
      await seen.page.locator("#again").click({ timeout: 1000 }).catch(() => {});
      return (await text(seen.page, "#chip")) === "live";
    });
    assert.equal(await seen.page.locator("#banner").isVisible(), false);
    await seen.close();
  });

  test("a page in the background gives its stream back, and takes it up again", () => looking(house, { before: (page) => page.clock.install() }, async (page) => {
    await live(page);
    const hide = (hidden) => page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
    const room = async () => {
      const stops = [];
      for (let stop; (stop = await listener(house.admin)); ) stops.push(stop);
      for (const stop of stops) stop();
      return stops.length;
    };
    await until("its place is taken", async () => (await room()) === 15);
    await hide(true);
    await page.clock.fastForward("06:00");
    await until("its place is free", async () => (await room()) === 16);
    await hide(false);
    await until("its place is taken", async () => (await room()) === 15);
    await live(page);
  }));
});

describe("a podgate that nobody has used", () => {
  test("says so, and how to begin", async () => {
    const house = await House.open("");
    try {
      await looking(house, {}, async (page) => {
        await page.locator("#unused").waitFor();
        assert.match(await text(page, "#unused"), /^No lane yet: send a request through /);
        assert.equal(await text(page, "#door"), house.door);
        assert.equal(await text(page, "#over .figure"), "0");
        assert.equal(await page.locator("#ends").isVisible(), false);
        await house.call(KEYS[0], "GET", "first/health");
        await lane(page, "first", "health").waitFor();
        assert.equal(await page.locator("#unused").isVisible(), false);
      });
      const seen = await visit(browser, house, { bypassCSP: true });
      await live(seen.page);
      assert.deepEqual(await judged(seen.page), []);
      await seen.close();
    } finally {
      await house.close();
    }
  });
});

describe("an upstream that refuses", () => {
  test("is counted, named and said", async () => {
    const house = await House.open("groups: { run: { max_wait: 1s } }");
    try {
      await looking(house, {}, async (page) => {
        await house.run(KEYS[0], "llama");
        await lane(page, "llama", "run").waitFor();
        await house.faults({ status: 429, group: "run", count: 3, retry_after: 20 });
        await house.run(KEYS[0], "llama");
        await page.locator("#over[data-kept=no]").waitFor();
        const throttled = await house.metric("podgate_upstream_throttled_total");
        assert.ok(throttled > 0);
        assert.equal(await text(page, "#over .figure"), String(throttled));
        assert.match(await text(page, "#over .verdict"), /^(rate|outside|concurrency) \d/);
        assert.match(await text(page, "#says"), /^The upstream answered 429, \d+ times so far\.$/);
        assert.match(await page.title(), /^\(429: \d+\) podgate$/);
        await lane(page, "llama", "run").locator(".badge", { hasText: "paused" }).waitFor();
      });
    } finally {
      await house.close();
    }
  });
});

describe("a podgate that goes away", () => {
  let house;
  before(async () => {
    house = await House.open("groups: { run: { rate: { requests: 60, per: 20m }, response_timeout: 10m } }");
    await house.run(KEYS[0], "llama");
  });
  after(() => house.close());

  test("is missed, and found again", async () => {
    const seen = await visit(browser, house);
    const { page } = seen;
    await live(page);
    await lane(page, "llama", "run").waitFor();
    assert.deepEqual(seen.faults, []);
    await house.podgate.end("SIGKILL");
    await page.locator("#banner", { hasText: "No connection to podgate." }).waitFor();
    assert.match(await text(page, "#trouble"), /What is shown is of .+ ago\. (Next try in \d+ s\.|Trying…)$/);
    assert.equal(await text(page, "#chip"), "no connection");
    assert.equal(await text(page, "#says"), "The connection to podgate is lost.");
    assert.match(await page.title(), /no connection/);
    // What was true last stays to be read, and is seen to be old.
    assert.equal(await lane(page, "llama", "run").isVisible(), true);
    assert.equal(await page.locator("main").evaluate((node) => getComputedStyle(node).opacity < 1), true);
    await until("it tries again", async () => /Trying|in [2-9]/.test(await text(page, "#trouble")));
    await house.serve(new URL(house.admin).host);
    await live(page);
    assert.equal(await page.locator("#banner").isVisible(), false);
    assert.equal(await text(page, "#says"), "podgate was restarted: its counts begin anew.");
    await page.locator("#unused").waitFor();
    // The browser notes what could not be reached; nothing else went wrong.
    assert.deepEqual(seen.faults.filter((fault) => !/ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET|EMPTY_RESPONSE)/.test(fault)), []);
    await seen.close();
  });

  test("is watched while it drains, to its end", async () => {
    const seen = await visit(browser, house);
    const { page } = seen;
    await live(page);
    await house.faults({ stall: true, group: "run" });
    house.run(KEYS[0], "llama");
    await until("it is under way", async () => (await house.lane("llama", "run"))?.permits.in_use === 1);
    house.podgate.child.kill("SIGTERM");
    await page.locator("#banner", { hasText: "podgate is draining" }).waitFor();
    assert.equal(await text(page, "#chip"), "draining");
    assert.equal(await text(page, "#says"), "podgate is draining: it takes nothing new.");
    for (let n = 0; n < 2; n++) await tick(page);
    await house.podgate.end("SIGKILL");
    await page.locator("#banner", { hasText: "podgate has ended." }).waitFor();
    assert.equal(await text(page, "#chip"), "ended");
    await seen.close();
  });
});

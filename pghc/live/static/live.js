// The running regions, drawn: as a page (`pghc watch`) and, the same module, as a widget in a notebook (`lab.watch()`).
// What is solid is evidence: a server said so, with its own time. What is hollow or moves between two such moments is
// interpolated. Everything is drawn as it was at one time, T, which runs a little behind the clock, so that both ends of
// a journey are known; T can be stopped, stepped and set back.

const BEHIND = 700, KEEP = 330_000, STUCK = 0.45; // ms, ms, and how far along a link to draw what nobody saw arrive
const LIGHT = ["#0072B2", "#007A5A", "#B5478C", "#2C7FB8", "#555555"], DARK = ["#5DB2EE", "#3FC79A", "#E59AC6", "#9AD4FA", "#C8C8C8"];
const SVG = "http://www.w3.org/2000/svg";
const number = (n) => n.toLocaleString("en-US");
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// What was seen

/** The first index of a sorted list whose time (or whatever `key` gives) is above `x`. */
function above(list, x, key = (item) => item.t) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(list[middle]) > x) high = middle; else low = middle + 1;
  }
  return low;
}

class Seen {
  constructor(hello) {
    this.regions = hello.topology.regions;
    this.home = Object.fromEntries(hello.servers.map(([name, region]) => [name, region]));
    this.firsts = Object.fromEntries(hello.servers.filter(([, , role]) => role === "primary").map(([name, region]) => [region, name]));
    this.states = new Map(); // "kind name" -> events in the order of their times
    this.chains = [{ t: -Infinity, c: -1, entries: new Map(), sorted: [], numbered: new Map(), rivals: [], bad: [] }];
    this.moments = []; // times at which something was seen to happen, for stepping
    this.first = Infinity;
    this.last = -Infinity;
  }

  add(events) {
    for (const event of events) {
      if (event.k === "chain") this.#chain(event);
      else if (event.k === "row") this.#row(event);
      else if (event.k === "num") this.chains.at(-1).numbered.set(event.p, event.t);
      else if (event.k === "rivals" || event.k === "bad") {
        const chain = this.chains.at(-1);
        chain[event.k].push(event);
        if (event.k === "rivals") chain.fork = Math.min(chain.fork ?? Infinity, event.n);
      }
      else this.#keep(`${event.k} ${event.v !== undefined && event.k !== "verdict" && event.k !== "run" ? event.v : (event.a ?? "") + (event.b ? ">" + event.b : "")}`.trim(), event);
      if (event.k !== "row") this.first = Math.min(this.first, event.t);
      this.last = Math.max(this.last, event.t);
    }
    this.#forget();
  }

  #chain(event) {
    if (event.c <= this.chains.at(-1).c) return;
    this.chains.push({ ...event, entries: new Map(), sorted: [], numbered: new Map(), rivals: [], bad: [] });
  }

  #row(event) {
    const chain = this.chains.at(-1), key = event.n + event.h;
    let entry = chain.entries.get(key);
    if (!entry) {
      entry = { chain, n: event.n, h: event.h, d: event.d, by: this.home[event.d], home: this.home[event.d], since: Infinity, p: null, a: null, c: null, seen: {}, sure: {}, how: {} };
      chain.entries.set(key, entry);
      const at = above(chain.sorted, event.n, (item) => item.n);
      if (at === chain.sorted.length) chain.sorted.push(entry); else chain.sorted.splice(at, 0, entry);
    }
    entry.a ??= event.a;
    entry.p ??= event.p;
    if (event.o === "here" && event.t < entry.since) [entry.home, entry.since] = [event.r, event.t]; // not always the node in the row
    if (event.o !== "log") entry.c ??= event.c;
    if (!(event.r in entry.seen)) this.#moment(event.t);
    entry.seen[event.r] = event.t;
    entry.sure[event.r] = event.s;
    entry.how[event.r] = event.o;
  }

  #moment(t) {
    const at = above(this.moments, t, (x) => x);
    if (this.moments[at - 1] !== t) at === this.moments.length ? this.moments.push(t) : this.moments.splice(at, 0, t);
  }

  #keep(name, event) {
    const list = this.states.get(name) ?? [];
    if (!list.length) this.states.set(name, list);
    if (!list.length || list.at(-1).t <= event.t) list.push(event); else list.splice(above(list, event.t), 0, event);
    if (["up", "link", "run", "verdict"].includes(event.k)) this.#moment(event.t);
  }

  #forget() {
    const before = this.last - KEEP;
    if (this.first > before - 20_000) return;
    this.first = before;
    this.moments.splice(0, above(this.moments, before, (x) => x));
    for (const list of this.states.values()) list.splice(0, Math.max(above(list, before) - 1, 0));
    while (this.chains.length > 1 && this.chains[1].t < before) this.chains.shift();
    for (const chain of this.chains) {
      chain.sorted = chain.sorted.filter((entry) => Math.max(...Object.values(entry.seen)) > before || chain.entries.delete(entry.n + entry.h) === null);
    }
  }

  at(name, T) { const list = this.states.get(name); return list && list[above(list, T) - 1]; }
  /** Who took a region's writes at T; who had which role. */
  primary(region, T) { return this.at(`role ${region}`, T)?.d ?? this.firsts[region]; }
  role(server, T) { return server.endsWith("-zookeeper") ? "zookeeper" : server === this.primary(this.home[server], T) ? "primary" : "replica"; }

  chain(T) { return this.chains[Math.max(above(this.chains, T) - 1, 0)]; }

  /** Up to which entry a server had all at T, and the greatest that it had: nothing of an older chain. */
  mark(server, T) {
    const chain = this.chain(T), found = this.at(`at ${server}`, T);
    return found && (found.c === chain.c || chain.c < 0) ? found : { w: 0, m: 0 };
  }

  /** When an entry was in a region: [time, whether a server says so]; Infinity when nobody has seen it there. */
  arrived(entry, region, T) {
    if (region in entry.seen) return [entry.seen[region], entry.sure[region]];
    const mark = this.mark(this.primary(region, T), T + 60); // the look that found it may have been a moment later
    const chain = this.chain(T); // whose regions hold the same up to its first rivals, so that one's mark tells of all
    return mark.w >= entry.n && !(chain.fork <= entry.n) ? [mark.t, 0] : [Infinity, 0];
  }

  /** Does another entry stand in its place there? */
  rival(entry, region) {
    const { sorted } = entry.chain;
    for (let i = above(sorted, entry.n - 0.5, (x) => x.n); sorted[i]?.n === entry.n; i++) if (sorted[i] !== entry && region in sorted[i].seen) return true;
    return false;
  }
}

// The view

class View {
  constructor(root, hello, send, save) {
    Object.assign(this, { root, hello, send, save });
    this.seen = new Seen(hello);
    this.regions = this.seen.regions.map((region) => region.name);
    this.pairs = this.regions.flatMap((a, i) => this.regions.slice(i + 1).map((b) => [a, b]));
    this.replay = Boolean(hello.saved);
    this.offset = null; // the clock of the servers, less ours
    this.T = null;
    this.live = !this.replay;
    this.paused = false;
    this.speed = 1;
    this.chosen = null;
    this.follow = false; // the newest entries also when there is an offending one
    this.frames = [];
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.#build();
    this.resize = new ResizeObserver(() => this.#layout());
    this.resize.observe(this.map);
    let before = performance.now(), drawn = 0;
    const frame = (now) => {
      if (!root.isConnected && this.seenConnected) return this.close();
      this.seenConnected ||= root.isConnected;
      this.handle = requestAnimationFrame(frame);
      this.#advance(now - before);
      before = now;
      if (this.T === null) return;
      this.frames.push(now);
      if (this.frames.length > 120) this.frames.shift();
      if (!this.still.matches) this.#fly();
      if (now - drawn > 100) { drawn = now; this.#draw(); }
    };
    this.handle = requestAnimationFrame(frame);
  }

  close() { cancelAnimationFrame(this.handle); this.resize.disconnect(); }

  feed({ now, events }) {
    this.offset = now - performance.now();
    this.seen.add(events);
    if (!this.replay && this.T === null) this.T = this.clock() - BEHIND;
    if (this.replay && this.T === null && events.length) { this.T = this.seen.first; this.paused = this.still.matches; }
  }

  clock() { return this.replay ? this.seen.last + 500 : performance.now() + this.offset; }

  #advance(passed) {
    if (this.T === null) return;
    const edge = this.clock() - (this.replay ? 0 : BEHIND);
    if (this.live && this.speed === 1) this.T = edge;
    else if (!this.paused) this.T = Math.min(this.T + passed * this.speed, edge);
    this.T = Math.max(this.T, this.seen.first);
  }

  get colours() {
    const theme = document.body?.dataset.jpThemeLight;
    return (theme ? theme === "false" : this.dark.matches) ? DARK : LIGHT;
  }
  colour(region) { return this.colours[this.regions.indexOf(region)] ?? "#888"; }

  // Building

  #build() {
    const { hello } = this, button = (text, title, press, more = {}) => h("button", { type: "button", title, onclick: press, ...more }, text);
    this.word = h("strong", { class: "word" });
    this.sentence = h("p", { class: "sentence" });
    this.verdict = h("div", { class: "verdict", "data-part": "verdict" }, this.word, this.sentence);
    this.spoken = h("p", { class: "spoken", role: "status" }); // the verdict, when it turns: its number would be read without end
    this.running = h("p", { class: "running", "data-part": "run" });
    const title = this.replay ? `a replay, saved ${hello.saved}` : "the regions, live";
    const header = h("header", {}, this.spoken, h("h1", {}, "PGHC ", h("small", {}, title)), this.verdict, this.running);

    this.ground = document.createElementNS(SVG, "svg");
    this.ground.setAttribute("aria-hidden", "true");
    this.sky = h("canvas", { "aria-hidden": "true" });
    this.map = h("section", { class: "map", "aria-label": "Regions, their servers and the links between them" }, this.ground, this.sky);
    this.cards = Object.fromEntries(this.regions.map((name) => [name, this.#card(name)]));
    this.labels = this.pairs.map(([a, b]) => {
      const label = button("", "", () => this.#choose({ link: [a, b] }), { class: "link", "data-link": `${a} ${b}` });
      this.map.append(label);
      return label;
    });
    this.legend = h("p", { class: "legend" });
    this.lanes = h("div", { class: "lanes", "data-part": "lanes", "aria-hidden": "true" });
    this.which = button("", "Show the newest entries, or those around the first that offends", () => { this.follow = !this.follow; }, { class: "quiet" });
    this.curves = h("div", { class: "curves", "aria-hidden": "true" });
    this.table = h("table", {});
    this.panel = h("aside", { "aria-label": "What can be done" });
    const chains = h("section", { class: "chains" }, h("h2", {}, "The end of each region's chain ", this.which), this.lanes);
    const words = h("details", {}, h("summary", {}, "The same as a table"), this.table);
    this.root.replaceChildren(h("div", { class: "pghc-live", tabindex: "-1" }, header,
      h("div", { class: "body" }, h("div", { class: "stage" }, this.map, this.legend, chains, this.curves, words), this.panel), this.#timebar(button)));
    this.root.firstChild.addEventListener("keydown", (event) => this.#key(event));
    this.#panel(button);
  }

  #card(name) {
    const region = this.seen.regions.find((each) => each.name === name);
    const chips = this.hello.servers.filter(([, where]) => where === name).map(([server, , role]) => h("button", {
      type: "button", class: `server ${role}`, "data-server": server, onclick: () => this.#choose({ server }) }));
    const card = h("div", { class: "card", "data-region": name, role: "group", "aria-label": `${name}, ${region.city}` },
      h("h3", {}, name, h("small", {}, region.city)), h("div", { class: "servers" }, ...chips));
    this.map.append(card);
    return card;
  }

  #timebar(button) {
    this.play = button("", "Pause, or go on (space)", () => this.#pause(), { "data-do": "time" });
    this.slider = h("input", { type: "range", min: 0, max: 1000, value: 1000, "aria-label": "Time: back over the last minutes",
      oninput: () => { this.live = false; this.paused = true; this.T = this.seen.first + (this.slider.value / 1000) * (this.clock() - this.seen.first); } });
    this.when = h("output", { class: "when", "data-part": "when" });
    const pace = h("select", { "aria-label": "Pace", onchange: (event) => { this.speed = Number(event.target.value); if (this.speed !== 1) this.live = false; } },
      ...[["1", "real pace"], ["0.25", "¼ pace"], ["0.05", "1/20 pace"]].map(([value, text]) => h("option", { value }, text)));
    this.now = button("live", "Back to what happens now (End)", () => this.#toEnd(), { class: "now", "data-do": "now" });
    const file = h("input", { type: "file", accept: ".jsonl,.gz", class: "file", "aria-label": "Open a saved history",
      onchange: async () => { if (file.files[0]) await this.#open(file.files[0]); file.value = ""; } });
    return h("footer", { class: "time" }, button("‹", "One event back (←)", () => this.#step(-1)), this.play,
      button("›", "One event on (→)", () => this.#step(1)), this.slider, this.when, pace, this.now,
      this.save && !this.replay ? button("save", "Save what was seen as a history: `pghc check` judges it, `pghc watch --replay` plays it", () => this.save(), { "data-do": "save" }) : null,
      h("label", { class: "open", title: "Play a history that was saved here" }, "open …", file));
  }

  async #open(file) {
    const stream = file.name.endsWith(".gz") ? file.stream().pipeThrough(new DecompressionStream("gzip")) : file.stream();
    const line = (await new Response(stream).text()).split("\n").find((each) => each.includes('"live":'));
    if (!line) return this.problem("This file holds no moment that was saved here. `pghc watch --replay FILE` plays any history.");
    const { view, events } = JSON.parse(line).live;
    const other = new View(this.root, { ...view.hello, saved: view.saved, can: [], sayings: {} }, () => {}, null);
    this.close();
    this.feed = () => {};
    other.feed({ now: 0, events });
  }

  #panel(button) {
    const { hello } = this;
    if (this.replay) {
      this.panel.append(h("h2", {}, "A replay"), h("p", {}, "Nothing can be done to it but to look: pause, step, go back and forth in time below."),
        hello.verdict ? h("p", { class: "sentence", "data-part": "checked" }, hello.verdict.x) : null);
      this.inspector = h("div");
      return;
    }
    const option = (value, text = value) => h("option", { value }, text);
    this.writer = h("select", { id: "pghc-writer" }, ...hello.writers.map((name) => option(name)));
    this.clients = h("input", { id: "pghc-clients", type: "number", min: 1, max: hello.limits.clients, value: 2 });
    this.seconds = h("select", { id: "pghc-seconds" }, option(10, "10 seconds"), option(60, "a minute"), option(hello.limits.seconds, "10 minutes"));
    this.seconds.value = "60";
    const run = () => ({ do: "run", writer: this.writer.value, clients: clamp(Math.round(this.clients.value) || 1, 1, hello.limits.clients), seconds: Number(this.seconds.value) });
    this.start = this.#doing("Start", run, "primary");
    this.stop = this.#doing("Stop", () => ({ do: "stop" }));
    this.heal = this.#doing("Heal everything", () => ({ do: "heal" }));
    this.same = h("div", { class: "same", "data-part": "same" });
    this.inspector = h("div", { class: "inspector", "data-part": "inspector" });
    this.log = h("ol", { class: "log", "aria-live": "polite", "data-part": "log" });
    for (const field of [this.writer, this.clients, this.seconds]) field.addEventListener("change", () => { this.clients.value = run().clients; this.#say(run()); });
    this.panel.append(h("h2", {}, "Let clients write"), h("div", { class: "fields" }, h("label", { for: "pghc-writer" }, "writer"), this.writer,
      h("label", { for: "pghc-clients" }, "clients a region"), this.clients, h("label", { for: "pghc-seconds" }, "for"), this.seconds),
      h("div", { class: "buttons" }, this.start, this.stop, this.heal), this.inspector, h("h2", {}, "The same at the prompt, and in a notebook"), this.same, this.log);
    this.#say(run());
    this.#choose(null);
  }

  /** A button that does what `order` gives, and says, when it is looked at, how to do the same elsewhere. */
  #doing(text, order, kind = "") {
    const press = () => { this.#say(order()); this.send(order()); this.#toEnd(); };
    const say = () => { if (!this.quietly) this.#say(order()); };
    return h("button", { type: "button", class: kind, "data-do": order().do, onclick: press, onfocus: say, onmouseenter: say }, text);
  }

  #say(order) {
    const fill = (text) => text.replace(/\{(\w+)\}/g, (_, name) => order[name]);
    const lines = (this.hello.sayings[order.do] ?? []).map((text) => fill(text));
    this.same.replaceChildren(...lines.map((line) => h("div", {}, h("code", {}, line),
      h("button", { type: "button", class: "quiet", "aria-label": `Copy: ${line}`, onclick: () => navigator.clipboard?.writeText(line) }, "copy"))));
  }

  #choose(what) {
    this.chosen = what;
    const { hello } = this, can = (ability) => hello.can.includes(ability);
    if (this.replay) return;
    if (!what) {
      this.inspector.replaceChildren(h("h2", {}, "Break something"), h("p", {}, "Choose a server, or a link between two regions, on the map."));
    } else if (what.server) {
      const act = (name, text) => this.#doing(text, () => ({ do: name, node: what.server }), name === "kill" ? "danger" : "");
      this.inspector.replaceChildren(h("h2", {}, what.server), h("div", { class: "buttons" }, ...(can("kill") ? [act("kill", "Kill"), act("start", "Start again")] : []),
        ...(can("pause") ? [act("pause", "Pause"), act("resume", "Let it go on")] : [])), ...(can("replace") ? [this.#replacing(what.server)] : []), h("p", {}, { primary: "The one server of its region that takes writes.", replica: "Follows its primary; read only.", zookeeper: "One vote of the consensus: more than half must agree on a number." }[this.seen.role(what.server, this.T ?? Infinity)]));
      this.inspector.querySelector("button")?.focus({ preventScroll: true });
    } else {
      const [a, b] = what.link;
      const direction = (source, target) => {
        const now = this.seen.at(`link ${source}>${target}`, this.T ?? 0)?.ms ?? 0;
        const shown = h("output", {}, `${now} ms`);
        const order = () => ({ do: "slow", source, target, delay_ms: Number(slider.value) });
        const slider = h("input", { type: "range", min: 0, max: 600, step: 5, value: now, "aria-label": `Delay from ${source} to ${target}, milliseconds`,
          oninput: () => { shown.value = `${slider.value} ms`; this.#say(order()); }, onchange: () => { this.send(order()); this.#toEnd(); } });
        return h("div", { class: "direction" }, h("span", {}, `${source} → ${target}`), slider, shown, this.#doing("Cut", () => ({ do: "cut", source, target }), "danger"));
      };
      this.inspector.replaceChildren(h("h2", {}, `${a} ⇄ ${b}`), ...(can("link") ? [direction(a, b), direction(b, a), h("div", { class: "buttons" },
        this.#doing("Cut both", () => ({ do: "partition", source: a, target: b }), "danger"), this.#doing("Open again", () => ({ do: "mend", source: a, target: b })))]
        : [h("p", {}, "This backend cannot change links.")]));
      this.inspector.querySelector("input, button")?.focus({ preventScroll: true });
    }
    this.#draw();
  }

  /** What ends a server for good, and what replaces it. */
  #replacing(server) {
    const region = this.seen.home[server], again = () => ({ do: "rebuild", node: server });
    const follow = () => ({ do: "promote", region, node: server });
    const database = this.seen.role(server, Infinity) !== "zookeeper";
    return h("div", { class: "buttons" }, this.#doing("Lose it with its disk", () => ({ do: "lose", node: server }), "danger"), this.#doing("Rebuild", again),
      ...(database ? [this.#doing(`Make it ${region}'s primary`, follow)] : []));
  }

  /** Nothing more comes: what is seen stays, and no button does anything. */
  end(text) {
    this.ended = true;
    this.now.textContent = "ended";
    for (const button of this.panel.querySelectorAll("button")) button.disabled = true;
    this.problem(text);
  }

  problem(text) { this.log?.prepend(h("li", { class: "error" }, text)); }

  // Time

  #toEnd() { this.paused = false; this.live = !this.replay; if (this.replay) this.T = this.clock(); this.root.querySelector("footer select").value = "1"; this.speed = 1; }
  #pause() {
    if (this.replay && this.paused && this.T >= this.clock() - 1) this.T = this.seen.first;
    this.paused = !this.paused;
    this.live = false;
  }
  #step(way) {
    this.paused = true;
    this.live = false;
    const { moments } = this.seen;
    const at = way > 0 ? above(moments, this.T + 0.001, (x) => x) : above(moments, this.T - 0.001, (x) => x) - 1;
    if (moments[at] !== undefined) this.T = moments[at];
  }
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const press = { ArrowLeft: () => this.#step(-1), ArrowRight: () => this.#step(1), End: () => this.#toEnd(), Escape: () => this.#choose(null),
      " ": event.target.tagName === "BUTTON" || event.target.tagName === "SUMMARY" ? null : () => this.#pause() }[event.key];
    if (press) { press(); event.preventDefault(); event.stopPropagation(); }
  }

  // Drawing

  #layout() {
    const width = this.map.clientWidth, narrow = width < 560, below = narrow ? 180 : 128; // there a card's servers need more lines
    const height = Math.round(clamp(width * 0.385, narrow ? 460 : 330, 720));
    if (!width) return;
    this.map.style.height = `${height}px`;
    const scale = devicePixelRatio || 1;
    this.sky.width = width * scale;
    this.sky.height = height * scale;
    this.sky.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
    const at = this.seen.regions, spread = (key) => [Math.min(...at.map((r) => r[key])), Math.max(...at.map((r) => r[key]))];
    const [west, east] = spread("longitude"), [south, north] = spread("latitude"), card = Math.min(clamp(width / 4.4, 232, 320), width / 3.3);
    const x = (lon) => card / 2 + 20 + ((lon - west) / (east - west || 1)) * (width - card - 40);
    const y = (lat) => 122 + ((north - lat) / (north - south || 1)) * (height - 122 - below);
    this.places = Object.fromEntries(at.map((r) => [r.name, [x(r.longitude), y(r.latitude)]]));
    const highest = at.reduce((one, other) => (other.latitude > one.latitude ? other : one)).name; // its links leave downwards
    const coast = this.hello.coasts.map((line) => "M" + line.reduce((text, value, i) => text + (i % 2 ? `${y(value).toFixed(1)} ` : `${x(value).toFixed(1)},`), "") + "Z").join("");
    const links = this.pairs.flatMap(([a, b]) => [[a, b], [b, a]]).map(([a, b]) => `<path class="wire" data-wire="${a} ${b}" d="${this.#curve(a, b)}"/>`);
    this.ground.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.ground.innerHTML = `<path class="coast" d="${coast}"/>${links.join("")}` + Object.entries(this.places).map(([name, [cx, cy]]) => `<circle class="city" cx="${cx}" cy="${cy}" r="6" fill="${this.colour(name)}"/>`).join("");
    for (const [name, element] of Object.entries(this.cards)) {
      const [cx, cy] = this.places[name];
      Object.assign(element.style, { width: `${card}px`, left: `${cx - card / 2}px`, top: name === highest ? `${cy - 14}px` : `${cy + 14}px`, transform: name === highest ? "translateY(-100%)" : "" });
    }
    this.pairs.forEach(([a, b], i) => {
      const [px, py] = this.#along(a, b, 0.5), [qx, qy] = this.#along(b, a, 0.5);
      Object.assign(this.labels[i].style, { left: `${(px + qx) / 2}px`, top: `${(py + qy) / 2}px` });
    });
  }

  /** The way from one region to another bows to its left, so that each direction has its own. */
  #bend(a, b) {
    const [ax, ay] = this.places[a], [bx, by] = this.places[b], far = Math.hypot(bx - ax, by - ay) || 1, bow = 26;
    const arch = -0.12 * far; // and both bow upwards, as ways on a globe do
    return [(ax + bx) / 2 + ((by - ay) / far) * bow, (ay + by) / 2 - ((bx - ax) / far) * bow + arch];
  }
  #curve(a, b) { return `M${this.places[a].join(",")} Q${this.#bend(a, b).join(",")} ${this.places[b].join(",")}`; }
  #along(a, b, p) {
    const [ax, ay] = this.places[a], [bx, by] = this.places[b], [cx, cy] = this.#bend(a, b), q = 1 - p;
    return [q * q * ax + 2 * q * p * cx + p * p * bx, q * q * ay + 2 * q * p * cy + p * p * by];
  }

  /** The entries that some region may lack at T, and the newest. */
  #about(T) {
    const { sorted } = this.seen.chain(T), marks = this.regions.map((name) => this.seen.mark(this.seen.primary(name, T), T));
    const low = Math.min(...marks.map((mark) => mark.w)), from = above(sorted, low - 20, (entry) => entry.n);
    return sorted.slice(Math.max(from, 0), from + 700);
  }

  get leader() { return this.hello.servers.find(([name, , role]) => role === "zookeeper" && this.seen.at(`up ${name}`, this.T)?.d === "leader")?.[1]; }

  /** Writes on their way: one frame. */
  #fly() {
    const { T, seen } = this, pen = this.sky.getContext("2d"), { numbered } = seen.chain(T), { leader } = this;
    if (!this.places) return;
    pen.clearRect(0, 0, this.sky.width, this.sky.height);
    pen.lineWidth = 1.6;
    const waiting = {};
    const dot = ([x, y], colour, solid, size = 4) => {
      pen.beginPath();
      pen.arc(x, y, size, 0, 7);
      if (solid) { pen.fillStyle = colour; pen.fill(); }
      else { pen.strokeStyle = colour; pen.globalAlpha = 0.28; pen.fillStyle = colour; pen.fill(); pen.globalAlpha = 1; pen.stroke(); }
    };
    const flash = (place, colour, age) => { // evidence: it happened here, just now
      if (age < 0 || age > 350) return;
      pen.globalAlpha = 1 - age / 350;
      dot(place, colour, true, 5);
      pen.beginPath(); pen.arc(...place, 6 + age / 25, 0, 7); pen.strokeStyle = colour; pen.stroke();
      pen.globalAlpha = 1;
    };
    for (const entry of this.#about(T)) {
      const colour = this.colour(entry.by), here = this.places[entry.home], agreed = numbered.get(entry.p);
      if (!here) continue;
      const byLog = Object.values(entry.how).includes("log");
      const written = entry.c ?? Math.min(...Object.values(entry.seen));
      if (entry.a !== null && entry.a <= T && T < written) { // taken by a client, and not written yet
        const there = leader && leader !== entry.home && agreed ? leader : null;
        if (there && T < agreed) dot(this.#along(entry.home, there, clamp((T - entry.a) / (agreed - entry.a || 1), 0, 1)), colour, false, 3);
        else if (there && !byLog) dot(this.#along(there, entry.home, clamp((T - agreed) / (written - agreed || 1), 0, 1)), colour, false, 3);
        else if (!byLog) dot([here[0] + 14 * Math.cos(entry.n * 2.4), here[1] + 14 * Math.sin(entry.n * 2.4)], colour, false, 3);
      }
      if (agreed && leader) flash([this.places[leader][0], this.places[leader][1] - 12], "#888", T - agreed);
      if (!byLog) flash(here, colour, T - written);
      const source = byLog ? leader : entry.home, left = byLog ? agreed : written;
      for (const region of this.regions) {
        if (region === source || !source || left === undefined || left > T) { if (region === source && byLog) flash(this.places[region], colour, T - (entry.seen[region] ?? Infinity)); continue; }
        const [there, sure] = seen.arrived(entry, region, T), delay = seen.at(`link ${source}>${region}`, T)?.ms ?? 80;
        if (there <= T) { if (sure) flash(this.places[region], colour, T - there); continue; }
        if (seen.rival(entry, region) && there === Infinity) continue;
        const slot = (waiting[source + region] = (waiting[source + region] ?? 0) + 1);
        const end = 1 - (there - T) / delay, p = end > STUCK ? end : Math.min((T - left) / delay, STUCK - 0.012 * (slot % 20));
        dot(this.#along(source, region, clamp(p, 0, 1)), colour, false);
      }
    }
  }

  #draw() {
    if (this.T === null || !this.places) return;
    this.#drawVerdict();
    this.#drawServers();
    this.#drawLinks();
    this.#drawLanes();
    this.#drawCurves();
    this.#drawTime();
    this.#drawTable();
  }

  #offence() {
    const { T } = this, verdict = this.seen.at("verdict", T), run = this.seen.at("run", T), chain = this.seen.chain(T);
    const judged = run?.s === "done" && run.t >= chain.t && !(verdict?.v === false && verdict.t > run.t) ? run : null;
    if (this.replay && this.hello.verdict && T >= this.seen.last) return { ...this.hello.verdict, by: "check" };
    if (judged) return { v: judged.v, x: judged.x, n: judged.n, by: "check" };
    return verdict && verdict.t >= chain.t ? { ...verdict, by: "live" } : { v: null, n: 0, x: "" };
  }

  #drawVerdict() {
    const found = this.#offence(), run = this.seen.at("run", this.T), state = { true: "valid", false: "invalid", null: "unknown" }[found.v];
    const word = { valid: found.by === "check" ? "Valid" : `Valid up to ${number(found.n)}`, invalid: `Invalid: entry ${number(found.n ?? 0)}`, unknown: "Nothing to judge yet" }[state];
    this.verdict.className = `verdict ${state}`;
    if (state + found.by !== this.turned) { this.turned = state + found.by; this.spoken.textContent = `${word}. ${found.x ?? ""}`; }
    this.#text(this.word, word);
    this.#text(this.sentence, found.by === "check" ? found.x.replace(/^\w+: /, "The checker, of the whole history: ") : found.x || (state === "valid" ? "every link recomputed, every region holds the same" : "let clients write"));
    const rate = run ? `${run.w}, ${run.c} clients a region: ` : "";
    this.#text(this.running, !run ? "" : rate + { starting: "starting …", running: `${number(run.ok)} appends acknowledged in ${run.seconds} s`, judging: "judging the history …",
      done: `over, ${number(run.ok)} appends in ${run.seconds} s`, failed: run.x }[run.s]);
    if (this.start && !this.ended) {
      const on = ["starting", "running", "judging"].includes(this.seen.at("run", this.seen.last)?.s);
      if (this.start.disabled !== on) { const focused = document.activeElement === (on ? this.start : this.stop); this.start.disabled = on; this.stop.disabled = !on; if (focused) { this.quietly = true; (on ? this.stop : this.start).focus(); this.quietly = false; } }
      if (!on) this.stop.disabled = true;
      const did = this.seen.states.get("did")?.slice(-5).reverse() ?? [], key = did.map((each) => each.t).join();
      if (key !== this.logged) {
        this.logged = key;
        this.log.replaceChildren(...did.map((each) => h("li", each.e ? { class: "error" } : {}, each.e ? `${each.x}: ${each.e}` : each.x)));
      }
    }
  }

  #text(element, text) { if (element.textContent !== text) element.textContent = text; }

  #drawServers() {
    const { T, seen } = this;
    for (const [server, region] of this.hello.servers) {
      const role = seen.role(server, T);
      const chip = this.cards[region].querySelector(`[data-server="${server}"]`), up = seen.at(`up ${server}`, T) ?? { s: this.replay ? "running" : "unreachable", d: "" };
      const name = server.slice(region.length + 1).replace("zookeeper", "zk").replace("-", " "), mark = seen.mark(server, T);
      const sign = { running: "", stopped: "✕ ", paused: "❙❙ ", unreachable: "? " }[up.s] ?? "⟳ ";
      const says = up.s !== "running" ? "" : role === "zookeeper" ? up.d : number(mark.w);
      this.#text(chip, `${sign}${name} ${says}`);
      chip.className = `server ${role} ${up.s} ${up.d === "leader" ? "leader" : ""} ${this.chosen?.server === server ? "chosen" : ""}`;
      const is = role === "zookeeper" ? `${up.s}, ${up.d}` : `${up.s}, ${role}, has every entry up to ${mark.w}`;
      if (chip.title !== `${server}: ${is}`) chip.title = `${server}: ${is}`;
      chip.setAttribute("aria-label", `${server}: ${up.s}${role === "zookeeper" ? `, ${up.d}` : `, has every entry up to ${mark.w}`}`);
    }
    for (const [region, card] of Object.entries(this.cards)) card.style.setProperty("--own", this.colour(region));
  }

  #drawLinks() {
    const { T, seen } = this, entries = this.#about(T);
    this.held = {};
    this.pairs.forEach(([a, b], i) => {
      const ways = [[a, b], [b, a]].map(([from, to]) => {
        const link = seen.at(`link ${from}>${to}`, T) ?? { ms: null, s: "open" };
        const held = entries.filter((e) => e.home === from && e.c !== null && e.c <= T && seen.arrived(e, to, T)[0] > T && !seen.rival(e, to)).length;
        this.held[`${from} ${to}`] = held;
        this.ground.querySelector(`[data-wire="${from} ${to}"]`)?.setAttribute("class", `wire ${link.s}`);
        return { from, to, held, ...link };
      });
      const shut = ways.filter((way) => way.s !== "open"), trip = seen.at(`trip ${a}>${b}`, T), sum = ways[0].ms + ways[1].ms;
      const arrow = (way) => (this.places[way.from][0] < this.places[way.to][0] ? "→" : "←");
      const held = ways.filter((way) => way.held).map((way) => `${arrow(way)} ${way.held}`).join("  ");
      const measured = trip && Math.abs(trip.ms - sum) < 40 ? `${Math.round(trip.ms)} ms` : ways[0].ms === null ? "" : `≈ ${sum} ms`;
      this.#text(this.labels[i], (shut.length === 2 ? "✂ cut" : shut.length ? `✂ ${arrow(shut[0])} cut` : measured) + (held ? `   ${held}` : ""));
      this.labels[i].className = `link ${shut.length ? "cut" : ""} ${this.chosen?.link?.join() === `${a},${b}` ? "chosen" : ""}`;
      const said = `${measured.startsWith("≈") ? `${measured}: as set, there and back; not measured yet. ` : ""}${ways.map((way) => `to ${way.to}: ${way.s}, ${way.ms} ms one way, ${way.held} writes on their way (${arrow(way)})`).join("; ")}`;
      if (this.labels[i].title !== said) this.labels[i].title = said;
      this.labels[i].setAttribute("aria-label", `Link ${a} and ${b}: ${ways.map((way) => `to ${way.to} ${way.s}, ${way.ms} ms one way, ${way.held} writes on their way`).join("; ")}`);
    });
  }

  /** Each region's entries, those of one number below each other. */
  #drawLanes() {
    const { T, seen } = this, chain = seen.chain(T), left = 86, cell = 62, row = 46, width = this.lanes.clientWidth || 800;
    const count = Math.max(Math.floor((width - left - 8) / cell), 4), found = this.#offence(), bad = found.v === false ? found.n : null;
    this.which.hidden = bad === null;
    this.#text(this.which, this.follow ? "show the first that offends" : "show the newest");
    const marks = this.regions.map((name) => seen.mark(seen.primary(name, T), T).m), then = this.regions.map((name) => seen.mark(seen.primary(name, T - 1000), T - 1000).m);
    const fast = Math.max(...marks) - Math.max(...then), upTo = (n) => above(chain.sorted, n, (e) => e.n), shown = upTo(Math.max(...marks)) - upTo(Math.max(...then));
    const each = fast > 30 && shown > 0 ? Math.round(fast / shown) : 1, common = bad !== null ? 1 : 4 ** Math.ceil(Math.log(each) / Math.log(4) - 0.1);
    const around = bad !== null && !this.follow ? upTo(bad) + 100 : upTo(Math.max(...marks)) + 100; // of many, those that may be shown
    const near = chain.sorted.slice(Math.max(around - 100 - 60 * count, 0), around);
    const known = [...new Set(near.filter((e) => e.n % common === 0 && ((e.a ?? Infinity) <= T || Math.min(...Object.values(e.seen)) <= T)).map((e) => e.n))];
    const end = bad !== null && !this.follow ? above(known, bad + Math.floor(count / 2), (x) => x) : known.length;
    const columns = known.slice(Math.max(end - count, 0), Math.max(end, Math.min(count, known.length)));
    const rivals = new Map(chain.rivals.filter((each) => each.t <= T).map((each) => [each.n, each]));
    const broken = new Set(chain.bad.filter((each) => each.t <= T).map((each) => `${each.r} ${each.n}`));
    const boxes = [];
    columns.forEach((n, i) => {
      const x = left + i * cell, y0 = 4;
      if (rivals.has(n)) boxes.push(`<rect class="clash" x="${x - 3}" y="${y0 - 3}" width="${cell - 4}" height="${this.regions.length * row + 2}" rx="7"/>`);
      const entries = [];
      for (let k = above(chain.sorted, n - 0.5, (e) => e.n); chain.sorted[k]?.n === n; k++) entries.push(chain.sorted[k]);
      this.regions.forEach((region, j) => {
        const y = y0 + j * row, there = entries.find((e) => e.seen[region] <= T) ?? entries.find((e) => seen.arrived(e, region, T)[0] <= T);
        const coming = there ? null : entries.find((e) => (e.a ?? Infinity) <= T || Math.min(...Object.values(e.seen)) <= T);
        const mine = there ?? coming;
        if (!mine) return;
        const unseen = !there && seen.mark(seen.primary(region, T), T).w >= n; // it has one, and we have not looked at it
        const clash = rivals.has(n), kind = there ? (there.sure[region] ? "here" : "guess") : "coming";
        const link = there && columns[i - 1] === n - 1 ? `<path class="chainlink ${broken.has(`${region} ${n}`) ? "broken" : ""}" d="M${x - 10},${y + 20} h10"/>` : "";
        const skip = i && columns[i - 1] !== n - 1 ? `<text class="skip" x="${x - 5}" y="${y + 24}"><title>entries that are not drawn</title>⋯</text>` : "";
        boxes.push(`${link}${skip}<g class="entry ${kind} ${clash && there ? "rival" : ""} ${broken.has(`${region} ${n}`) ? "rival" : ""}" data-entry="${n}" data-in="${region}" data-state="${kind}"${clash && there ? ` data-rival="${n}"` : ""} color="${this.colour(mine.by)}">` +
          `<title>${escape(rivals.get(n)?.x ?? `entry ${n} of ${mine.d}, hash ${mine.h}`)}</title><rect x="${x}" y="${y}" width="${cell - 10}" height="40" rx="5"/>` +
          `<text x="${x + (cell - 10) / 2}" y="${y + 17}">${number(n)}</text><text class="hash" x="${x + (cell - 10) / 2}" y="${y + 32}">${there ? mine.h.slice(0, 5) : unseen ? "?" : "· · ·"}</text></g>`);
      });
    });
    const names = this.regions.map((region, j) => `<text class="lane" x="0" y="${28 + j * row}" color="${this.colour(region)}">${region}</text>`);
    const text = `<svg width="${width}" height="${this.regions.length * row + 6}">${names.join("")}${boxes.join("")}${columns.length ? "" : `<text class="lane" x="${left}" y="28">no entry yet</text>`}</svg>`;
    if (text !== this.laned) { this.laned = text; this.lanes.innerHTML = text; }
    this.#text(this.legend, `● a server says so, with its time   ○ on its way: interpolated between two such times   colour: the region in the row${each > 1 ? `   one of about ${each} writes is drawn` : ""}   a row may arrive before its turn; readers are shown it when all before it are there`);
  }

  #drawCurves() {
    const { T, seen } = this, span = 60, width = Math.max((this.curves.clientWidth - 24) / 2, 200), height = 84, times = Array.from({ length: span + 1 }, (_, i) => T - (span - i) * 1000);
    const marks = Object.fromEntries(this.regions.map((name) => [name, times.map((t) => [seen.mark(seen.primary(name, t), t), seen.chain(t).c])]));
    const rate = (name) => marks[name].map(([mark, c], i, all) => (i && all[i - 1][1] === c ? Math.max(mark.m - all[i - 1][0].m, 0) : 0));
    const most = times.map((_, i) => Math.max(...this.regions.map((name) => marks[name][i][0].m)));
    const lag = (name) => marks[name].map(([mark], i) => most[i] - mark.w);
    const chart = (title, unit, values) => {
      const top = Math.max(1, ...Object.values(values).flat()), x = (i) => (i / span) * (width - 4) + 2, y = (v) => height - 16 - (v / top) * (height - 36);
      const lines = Object.entries(values).map(([name, list], j) => `<polyline fill="none" stroke="${this.colour(name)}" stroke-dasharray="${["", "6 3", "2 3", "8 2 2 2", "1 2"][j]}" points="${list.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ")}"/>`);
      return `<svg width="${width}" height="${height}"><text class="title" x="2" y="13">${title}</text><text class="top" x="${width - 2}" y="13">top ${number(top)} ${unit}</text><path class="axis" d="M2,${height - 16} H${width - 2}"/>${lines.join("")}<text class="axis" x="2" y="${height - 3}">a minute ago</text><text class="axis top" x="${width - 2}" y="${height - 3}">now</text></svg>`;
    };
    const all = (make) => Object.fromEntries(this.regions.map((name) => [name, make(name)]));
    const text = chart("Entries a second, by region", "a second", all(rate)) + chart("Entries that a region lacks", "entries", all(lag));
    if (text !== this.curved) { this.curved = text; this.curves.innerHTML = text; }
  }

  #drawTime() {
    const { seen } = this, end = this.clock(), back = (end - (this.replay ? 0 : BEHIND) - this.T) / 1000;
    if (document.activeElement !== this.slider || !this.paused) this.slider.value = Math.round((1000 * (this.T - seen.first)) / (end - seen.first || 1));
    this.#text(this.play, this.paused ? "▶" : "❙❙");
    this.play.setAttribute("aria-label", this.paused ? "go on" : "pause");
    const clock = this.replay ? `${((this.T - seen.first) / 1000).toFixed(3)} s` : new Date(this.T).toISOString().slice(11, 23);
    this.#text(this.when, `${clock}${back > 0.3 && !this.replay ? `  ${back.toFixed(1)} s ago` : ""}`);
    this.now.hidden = this.replay;
    this.now.classList.toggle("on", this.live && !this.ended);
    const fps = this.frames.length > 10 ? Math.round((1000 * (this.frames.length - 1)) / (this.frames.at(-1) - this.frames[0])) : 0;
    this.root.firstChild.dataset.fps = fps;
  }

  #drawTable() {
    const { T, seen } = this, say = (server) => { const up = seen.at(`up ${server}`, T); return up ? `${up.s}${up.d === "leader" || up.d === "follower" ? `, ${up.d}` : ""}` : "not known"; };
    const of = (region, wanted) => this.hello.servers.filter(([name, where]) => where === region && seen.role(name, T) === wanted).map(([name]) => name);
    const rows = this.regions.map((region) => {
      const mark = seen.mark(seen.primary(region, T), T), replicas = of(region, "replica").map((name) => `${say(name)}, up to ${number(seen.mark(name, T).w)}`);
      const links = this.regions.filter((other) => other !== region).map((other) => { const link = seen.at(`link ${region}>${other}`, T); return link ? `${other}: ${link.s}, ${link.ms} ms` : ""; });
      return `<tr data-row="${region}"><th scope="row">${region}</th><td>${say(seen.primary(region, T))}</td><td data-cell="upto">${number(mark.w)}</td><td>${number(mark.m)}</td><td>${replicas.join("; ")}</td><td>${say(`${region}-zookeeper`)}</td><td>${links.filter(Boolean).join("; ")}</td></tr>`;
    });
    const heads = ["region", "primary", "has every entry up to", "greatest entry", "replicas", "ZooKeeper", "links from here, one way"].map((text) => `<th scope="col">${text}</th>`);
    const text = `<caption>${escape(this.word.textContent)}. ${escape(this.sentence.textContent)}</caption><thead><tr>${heads.join("")}</tr></thead><tbody>${rows.join("")}</tbody>`;
    if (text !== this.tabled) { this.tabled = text; this.table.innerHTML = text; }
  }
}

// As a page

async function page(root) {
  const authorization = `Bearer ${location.hash.slice(1)}`, say = (text) => { if (!view) root.textContent = text; else view.problem(text); };
  let view = null;
  const send = async (order) => {
    const answer = await fetch("/do", { method: "POST", headers: { authorization }, body: JSON.stringify(order) }).catch(() => null);
    if (!answer?.ok) say(answer ? (await answer.json()).error : "The page's server does not answer.");
  };
  const save = async () => {
    const answer = await fetch("/save", { headers: { authorization } }).catch(() => null);
    if (!answer?.ok) return say(answer ? (await answer.json()).error : "The page's server does not answer.");
    const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: `pghc-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.jsonl.gz` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  for (;;) {
    const answer = await fetch("/events", { headers: { authorization } }).catch(() => null);
    if (answer && !answer.ok) return say((await answer.json()).error);
    if (answer) {
      view?.close();
      view = null;
      const lines = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await lines.read().catch(() => ({ done: true }));
        if (done) break;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const data = JSON.parse(part.slice(part.indexOf("data: ") + 6));
          if (part.startsWith("event: hello")) { view = new View(root, data, send, save); globalThis.pghc = view; }
          else view.feed(data);
        }
      }
      view?.end("The page's server has ended. Start it again: pghc watch");
    }
    await new Promise((wake) => setTimeout(wake, 2000));
  }
}

// As a widget

function render({ model, el }) {
  const begin = () => new View(el, model.get("_hello"), (order) => model.send(order), null);
  let view = begin();
  const hear = (message) => {
    if (message.error) view.problem(message.error);
    if (message.begin) { view.close(); view = begin(); }
    if (message.events) view.feed(message);
  };
  model.on("msg:custom", hear);
  model.send({ do: "open" });
  return () => { model.off("msg:custom", hear); view.close(); };
}

export default { render };

const root = globalThis.document?.getElementById("pghc-live");
if (root) page(root);

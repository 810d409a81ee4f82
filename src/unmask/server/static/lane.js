// One lane: a decoder and a cache with their knobs, the canvas, its replay, and the earlier turns.

import { describe, draw } from "./canvas.js";
import { Chart } from "./chart.js";
import { download, filmOf, pageOf, python, traceOf } from "./export.js";
import { Frames, OPEN } from "./frames.js";
import { Knobs } from "./knobs.js";
import { curl, events, postForBlob } from "./stream.js";

const FRAME_MS = 120, LEAST_FRAME_MS = 20, REPLAY_MS = 12_000; // a long replay runs faster
const ENDINGS = { stop: "ended", length: "all positions used" };

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

export class Lane {
  // `ask()` returns {path, body} of the form or throws an Error. Lanes share `scale`.
  constructor(name, schema, method, ask, scale) {
    this.name = name;
    this.schema = schema;
    this.ask = ask;
    this.frames = new Frames();
    this.turns = [];
    this.at = 0;
    this.element = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.parts = {
      title: find("h2"), decoder: find(".decoder"), cache: find(".cache"), about: find(".about"),
      changed: find(".changed"), turns: find(".turns"), canvas: find(".canvas"),
      problem: find(".problem"), play: find(".play"), step: find(".step"), where: find(".where"),
      facts: find(".facts"), copyText: find(".copy-text"), copyCurl: find(".copy-curl"),
      copyPython: find(".copy-python"), save: find(".save"), format: find(".format"),
    };
    this.parts.title.textContent = `Lane ${name}`;
    this.element.setAttribute("aria-label", `Lane ${name}`);
    this.parts.canvas.setAttribute("aria-label", `Canvas of lane ${name}`);
    this.parts.step.setAttribute("aria-label", `Forward shown in lane ${name}`);
    this.chart = new Chart(find(".chart"), scale, (forward) => {
      this.pause();
      this.show(this.frames.list.findIndex((frame) => frame.forward === forward));
    });
    this.knobs = new Knobs(find(".knobs div"), find(".explains"), ({ knob, where }) => {
      if (knob.name === "inner" && where === "decoder") {
        this.fillKnobs({ decoder: this.knobs.typed("decoder"), cache: this.knobs.typed("cache") });
        this.element.querySelector("[data-knob=inner]").focus();
      }
      this.countChanged();
    });
    this.fill(method);
    this.listen();
  }

  fill({ decoder, cache, knobs, cacheArgs }) {
    const option = ({ name }) => new Option(name, name);
    this.parts.decoder.replaceChildren(...this.schema.decoders.map(option));
    const offered = this.schema.caches.filter(({ name, refused }) => !refused || name === cache);
    this.parts.cache.replaceChildren(...offered.map(option));
    this.parts.decoder.value = decoder;
    this.parts.cache.value = cache;
    this.fillKnobs({ decoder: knobs ?? {}, cache: cacheArgs ?? {} });
  }

  method() {
    const named = (list, name) => list.find((item) => item.name === name);
    return {
      decoder: named(this.schema.decoders, this.parts.decoder.value),
      cache: named(this.schema.caches, this.parts.cache.value),
    };
  }

  fillKnobs(values) {
    const { decoder, cache } = this.method();
    const wrappable = this.schema.decoders.filter((item) => !item.wraps);
    const own = decoder.knobs.map((knob) => (knob.name === "inner"
      ? { ...knob, type: "choice", choices: wrappable.map((item) => item.name) } : knob));
    const inner = decoder.wraps && wrappable.find((item) => item.name === values.decoder.inner);
    const groups = [[decoder.name, own, "decoder", values.decoder]];
    if (inner) {
      const taken = new Set(own.map((knob) => knob.name));
      const rest = inner.knobs.filter((knob) => !taken.has(knob.name));
      groups.push([`${inner.name} inside`, rest, "decoder", values.decoder]);
    }
    groups.push([`cache ${cache.name}`, cache.knobs, "cache", values.cache]);
    groups.push(["every decoder", this.schema.shared, "decoder", values.decoder]);
    this.knobs.show(groups);
    const kind = { true: "exact cache", false: "approximate cache" }[String(cache.exact)];
    const paper = decoder.source?.match(/arXiv:\d{4}\.\d{5}/)?.[0];
    this.parts.about.textContent = [decoder.title, paper, kind].filter(Boolean).join(" · ");
    this.countChanged();
  }

  countChanged() {
    const count = this.knobs.count();
    this.parts.changed.textContent = count ? `· ${count} changed` : "";
  }

  listen() {
    const { parts } = this;
    const shared = new Set(this.schema.shared.map(({ name }) => name));
    parts.decoder.addEventListener("change", () => {
      const typed = Object.entries(this.knobs.typed("decoder")).filter(([name]) => shared.has(name));
      this.fillKnobs({ decoder: Object.fromEntries(typed), cache: this.knobs.typed("cache") });
    });
    parts.cache.addEventListener("change", () => this.fillKnobs({ decoder: this.knobs.typed("decoder"), cache: {} }));
    parts.step.addEventListener("input", () => {
      this.pause();
      this.show(Number(parts.step.value));
    });
    parts.play.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    parts.copyText.addEventListener("click", () => copy(this.text, parts.copyText));
    parts.copyCurl.addEventListener("click", () => this.copyRequest(parts.copyCurl, ({ path, body }) =>
      curl(path, body, document.getElementById("key").value)));
    parts.copyPython.addEventListener("click", () => this.copyRequest(parts.copyPython, ({ path, body }) =>
      python(path, body)));
    parts.save.addEventListener("click", () => this.save());
    parts.canvas.addEventListener("pointerover", ({ target }) => {
      const position = [...parts.canvas.children].indexOf(target);
      const frame = this.frames.list[this.at];
      if (position >= 0 && frame) target.title = describe(frame, position);
    });
  }

  // Returns the request of the form with this lane's method. Throws an Error for invalid input.
  request() {
    const { decoder, cache } = this.knobs.values();
    const { path, body } = this.ask(this.turns);
    const request = { ...body, decoder: this.parts.decoder.value };
    if (Object.keys(decoder).length) request.decoder_args = decoder;
    request.cache = this.parts.cache.value;
    if (Object.keys(cache).length) request.cache_args = cache;
    return { path, body: { ...request, stream: true, stream_mode: "canvas", stream_options: { include_usage: true },
      return_trace: true, trace_header: true } };
  }

  async run(key, signal) {
    this.begin();
    const began = performance.now();
    let usage = null, method = null, reason = null;
    try {
      const { path, body } = this.request();
      const last = body.messages?.at(-1);
      this.showTurns(last);
      for await (const chunk of events(path, body, key, signal)) {
        const choice = chunk.choices?.[0];
        if (choice?.canvas) this.take(choice.canvas);
        else if (choice) this.text = choice.delta?.content ?? choice.text ?? this.text;
        if (choice?.trace) this.trace = { header: choice.trace_header, steps: choice.trace };
        reason = choice?.finish_reason ?? reason;
        usage = chunk.usage ?? usage;
        method = chunk.unmask ?? method;
      }
      // a turn without an answer cannot be continued
      if (last && this.text.trim()) this.turns.push(last, { role: "assistant", content: this.text });
      this.end((performance.now() - began) / 1000, { usage, method, reason });
      return true;
    } catch (error) {
      const isStop = error.name === "AbortError";
      this.end((performance.now() - began) / 1000, { reason: isStop ? "stopped" : "failed" });
      if (!isStop) {
        this.complain(error);
        this.knobs.refuse(error.param, error.message);
      }
      return false;
    }
  }

  begin() {
    this.pause();
    this.frames = new Frames();
    this.trace = null;
    this.text = "";
    this.at = 0;
    this.follows = true;
    this.chart.clear();
    this.parts.canvas.replaceChildren();
    this.parts.problem.hidden = true;
    this.parts.facts.textContent = "";
    this.parts.copyText.disabled = true;
    this.parts.save.disabled = true;
    this.parts.play.disabled = true;
    this.parts.step.disabled = true;
    this.parts.step.value = "0";
    this.parts.where.textContent = "no forward yet";
    this.showTurns();
    this.element.classList.add("is-running");
  }

  take(frame) {
    this.frames.add(frame);
    this.parts.step.disabled = false;
    this.parts.step.max = String(this.frames.length - 1);
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.show(this.frames.length - 1);
    });
  }

  end(seconds, { usage, method, reason }) {
    cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    this.element.classList.remove("is-running");
    if (this.frames.length) this.show(this.frames.length - 1);
    this.parts.play.disabled = this.frames.length < 2;
    this.parts.copyText.disabled = !this.text;
    this.parts.save.disabled = !this.frames.length;
    const facts = [];
    if (usage) {
      facts.push(counted(usage.completion_tokens, "token"), counted(usage.num_forwards ?? "?", "forward"));
      if (usage.tokens_per_forward) facts.push(`${usage.tokens_per_forward.toFixed(2)} tokens/forward`);
    }
    if (usage && seconds > 0) facts.push(`${(usage.completion_tokens / seconds).toFixed(0)} tokens/s`);
    facts.push(`${seconds.toFixed(2)} s`, ENDINGS[reason] ?? reason ?? "");
    if (method) facts.push(`${method.cache_exact ? "exact" : "approximate"} cache`);
    this.parts.facts.textContent = facts.filter(Boolean).join(" · ");
  }

  complain(error) {
    this.parts.problem.textContent = error.message;
    this.parts.problem.hidden = false;
  }

  show(index) {
    const frame = this.frames.list[index];
    if (!frame) return;
    this.at = index;
    draw(this.parts.canvas, frame, document.getElementById("colors").value);
    this.chart.draw(this.frames.counts(), frame.forward);
    const { step, where } = this.parts;
    step.value = String(index);
    const size = frame.marks.length;
    const done = size - frame.marks.reduce((sum, mark) => sum + (mark & OPEN), 0);
    const words = `forward ${frame.forward} of ${this.frames.list.at(-1).forward}`;
    where.textContent = `${words}, ${done} of ${size} positions`;
    step.setAttribute("aria-valuetext", words);
  }

  play() {
    if (this.at >= this.frames.length - 1) this.show(0);
    this.parts.play.textContent = "Pause";
    const pace = Math.max(LEAST_FRAME_MS, Math.min(FRAME_MS, REPLAY_MS / this.frames.length));
    this.timer = setInterval(() => {
      this.show(this.at + 1);
      if (this.at >= this.frames.length - 1) this.pause();
    }, pace);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    this.parts.play.textContent = "Replay";
  }

  reset() {
    this.turns = [];
    this.begin();
    this.element.classList.remove("is-running");
  }

  // Removes the last exchange if it began with this text.
  removeLast(text) {
    if (this.turns.at(-2)?.content === text) this.turns = this.turns.slice(0, -2);
  }

  // Shows the conversation, and the question that the canvas answers.
  showTurns(question) {
    this.parts.turns.replaceChildren(...[...this.turns, question].filter(Boolean).map(({ role, content }) => {
      const item = document.createElement("li");
      item.className = role;
      item.dir = "auto";
      item.textContent = content;
      return item;
    }));
    this.parts.turns.scrollTop = this.parts.turns.scrollHeight;
  }

  // Copies what `write` makes of the request that the form describes.
  copyRequest(button, write) {
    try {
      const request = this.request();
      this.parts.problem.hidden = true;
      copy(write(request), button);
    } catch (error) {
      this.complain(error);
    }
  }

  // Downloads the decode as a page with a slider, a picture or a trace file.
  async save() {
    const format = this.parts.format.value;
    this.parts.save.disabled = true;
    try {
      download(`decode.${format}`, await this.file(format));
      this.parts.problem.hidden = true;
    } catch (error) {
      this.complain(error);
    }
    this.parts.save.disabled = false;
  }

  async file(format) {
    if (format === "jsonl") {
      if (!this.trace) throw new Error("The trace comes with the end of an answer, and this one was stopped; run it to its end.");
      return new Blob([traceOf(this.trace)], { type: "application/jsonl" });
    }
    const title = `${this.schema.model.id} · ${this.parts.decoder.value} · cache ${this.parts.cache.value}`;
    const question = [...this.parts.turns.querySelectorAll("li.user")].at(-1)?.textContent ?? "";
    const film = filmOf(this.frames, title, question);
    if (format !== "html") return postForBlob("v1/picture", { format, film }, document.getElementById("key").value);
    const reply = await fetch("static/player.html");
    if (!reply.ok) throw new Error(`The player cannot be loaded: ${reply.status}.`);
    return new Blob([pageOf(await reply.text(), film)], { type: "text/html" });
  }

  // Returns the method of the form, for a link to it.
  state() {
    return { decoder: this.parts.decoder.value, cache: this.parts.cache.value,
      knobs: this.knobs.typed("decoder"), cacheArgs: this.knobs.typed("cache") };
  }
}

// Copies to the clipboard; where it is not available (plain http), shows a box to copy from.
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  } catch {
    const box = document.getElementById("curl-text");
    box.value = text;
    document.getElementById("curl").showModal();
    box.select();
    box.scrollTop = 0;
  }
}

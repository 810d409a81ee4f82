// What leaves the page: a file that plays the decode, a program in Python, and a link to the form.

import { AGAIN, END, FIXED, NEW, OPEN, SPECIAL } from "./frames.js";

const KINDS = ["open", "again", "new", "old", "fixed"];
const MARK = "/*FILM_DATA*/null";

function kindOf(mark) {
  if (mark & OPEN) return mark & AGAIN ? 1 : 0;
  if (mark & FIXED) return 4;
  return mark & NEW ? 2 : 3;
}

// Returns a decode as `unmask.pictures.page.FilmData`: distinct cells, and their indices by frame.
export function filmOf(frames, title, prompt) {
  const cells = [];
  const known = new Map();
  const rows = frames.list.map((frame) => {
    const indices = [];
    frame.marks.forEach((mark, i) => {
      if (mark & SPECIAL) return;
      const sure = Number.isNaN(frame.sure[i]) ? null : Math.round(frame.sure[i] * 1e4) / 1e4;
      const isOpen = (mark & OPEN) !== 0;
      const cell = [i, isOpen ? "" : frame.texts[i], kindOf(mark), mark & END && !isOpen ? 1 : 0,
        isOpen || mark & FIXED ? 0 : frame.order[i], isOpen ? null : sure, [], isOpen ? [] : frame.likeliest[i]];
      const key = JSON.stringify(cell);
      if (!known.has(key)) {
        known.set(key, cells.length);
        cells.push(cell);
      }
      indices.push(known.get(key));
    });
    return [frame.forward, 0, indices];
  });
  return { title, prompt, kinds: KINDS, cells, frames: rows };
}

// Returns the page that plays a film, one file. A text cannot end the script that it stands in.
export function pageOf(template, film) {
  const codes = { "<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029" };
  const data = JSON.stringify(film).replace(/[<\u2028\u2029]/g, (char) => codes[char]);
  return template.split(MARK).join(data);
}

// Returns the trace file that `unmask replay` reads.
export function traceOf({ header, steps }) {
  const lines = [header, ...steps.map((step, number) => ({ step: number, ...step }))];
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}

export function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Returns a value as Python writes it.
export function literal(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, inner)}`);
  const [first, last] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const line = `${first}${items.join(", ")}${last}`;
  return line.length < 80 ? line : `${first}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${last}`;
}

// Returns a program that decodes the same request in Python, without a server.
export function python(path, body) {
  const options = { ...body.decoder_args, seed: body.seed };
  if (body.max_tokens !== undefined) options.gen_length = body.max_tokens;
  const call = [];
  let name = "generate";
  if (path.endsWith("infill")) {
    name = "infill";
    call.push(literal(body.parts, "    "));
  } else if (body.messages) {
    name = "chat";
    call.push(literal(body.messages, "    "));
  } else call.push(literal(body.prompt));
  call.push(`decoder=${literal(body.decoder)}`, `cache=${literal(body.cache)}`);
  if (body.cache_args) call.push(`cache_args=${literal(body.cache_args, "    ")}`);
  if (name === "generate") call.push("raw=True");
  for (const [key, value] of Object.entries(options)) call.push(`${key}=${literal(value, "    ")}`);
  const lines = call.map((item) => `    ${item},\n`).join("");
  const first = name === "generate" ? "[0]" : "";
  return `import unmask\n\nllm = unmask.LLM(${literal(body.model)})\nout = llm.${name}(\n${lines})${first}\nprint(out.text)\n`;
}

// Returns the address of this page with the form in it, and reads it back.
export function linkTo(state) {
  const url = new URL(document.baseURI);
  url.hash = new URLSearchParams({ form: JSON.stringify(state) }).toString();
  return url.href;
}

export function readLink() {
  try {
    const state = JSON.parse(new URLSearchParams(location.hash.slice(1)).get("form") ?? "null");
    return state !== null && typeof state === "object" ? state : null;
  } catch {
    return null;
  }
}

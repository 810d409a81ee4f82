// The page: the form, the lanes, and the requests that connect them.

import { hasBlank, parse } from "./blanks.js";
import { Scale } from "./chart.js";
import { linkTo, readLink } from "./export.js";
import { copy, Lane } from "./lane.js";
import { filter, showReference } from "./reference.js";
import { getJson } from "./stream.js";

const at = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];
const EXAMPLES = [
  ["Word problem", "chat", "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?", 64],
  ["Sudoku", "chat", "Sudoku\n0200\n4302\n3401\n0004", 32],
  ["Infill", "prompt", "The {2} sat on the mat.", 64],
];

let schema = null;
let lanes = [];
let running = null;
let lastQuestion = ""; // of the conversation
const scale = new Scale();

const mode = () => document.querySelector('input[name="mode"]:checked').value;
const key = () => at("key").value;
const active = () => (at("compare").checked ? lanes : lanes.slice(0, 1));

function say(text) {
  at("said").textContent = text;
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

// Returns the path and body of the request in the form. Throws an Error for invalid input.
function ask(turns) {
  const text = at("text").value;
  if (!text.trim()) throw new Error("The text is empty; type something first.");
  const number = (id, name) => {
    const input = at(id);
    if (!input.checkValidity()) throw new Error(`${name}: ${input.validationMessage}`);
    return Number(input.value);
  };
  const body = { model: schema.model.id, seed: number("seed", "Seed") };
  const alternatives = number("alternatives", "Alternatives");
  if (alternatives) body.trace_alternatives = alternatives;
  if (mode() === "chat") {
    const messages = [...turns, { role: "user", content: text }];
    return { path: "v1/chat/completions", body: { ...body, messages, max_tokens: number("max-tokens", "Tokens") } };
  }
  if (hasBlank(text)) return { path: "v1/infill", body: { ...body, parts: parse(text) } };
  return { path: "v1/completions", body: { ...body, prompt: text, max_tokens: number("max-tokens", "Tokens") } };
}

function hint() {
  const text = at("text").value;
  const fills = mode() === "prompt" && hasBlank(text);
  const isChat = mode() === "chat";
  let words = isChat ? "The next turn of a conversation." : "Text for the model to continue; {3} is a blank of three tokens.";
  if (fills) {
    try {
      const blanks = parse(text).filter((part) => typeof part === "number");
      const sum = blanks.reduce((a, b) => a + b, 0);
      words = `Infill: ${blanks.length} blank${blanks.length === 1 ? "" : "s"}, ${sum} token${sum === 1 ? "" : "s"}.`
        + " Write {{ for a brace.";
    } catch (error) {
      words = error.message;
    }
  }
  at("hint").textContent = words;
  at("max-tokens").disabled = fills;
  at("reset").hidden = !isChat;
  at("again").hidden = !isChat || !lastQuestion;
  at("text").placeholder = isChat ? "Ask something." : "The {3} sat on the {2}.";
  at("lanes").classList.toggle("no-turns", !isChat);
}

async function run(event) {
  event.preventDefault();
  if (running || !schema) return;
  running = new AbortController();
  at("run").disabled = true;
  at("stop").disabled = false;
  trouble("");
  say("Decoding.");
  const before = document.activeElement;
  const chosen = active();
  showCanvas(chosen[0]);
  const succeeded = await Promise.all(chosen.map((lane) => lane.run(key(), running.signal)));
  running = null;
  at("run").disabled = false;
  at("stop").disabled = true;
  say(chosen.map((lane, i) => `Lane ${lane.name}: ${succeeded[i] ? lane.parts.facts.textContent : "no answer"}.`).join(" "));
  if (mode() === "chat" && succeeded.every(Boolean)) {
    lastQuestion = at("text").value;
    at("text").value = "";
    hint();
    at("text").focus({ preventScroll: true }); // the canvas stays in view
  } else if ([document.body, at("stop")].includes(document.activeElement)) {
    (before === document.body ? at("run") : before).focus(); // a disabled button loses the focus
  }
}

// On a narrow screen the canvas lies below the form: brings it into view.
function showCanvas(lane) {
  const { canvas } = lane.parts;
  const { top, bottom } = canvas.getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  canvas.scrollIntoView({ block: innerWidth < 832 ? "start" : "nearest", behavior: isCalm ? "auto" : "smooth" });
}

// Returns the form as a link keeps it; the key is never part of it.
function formState() {
  return { mode: mode(), text: at("text").value, tokens: at("max-tokens").value, seed: at("seed").value,
    compare: at("compare").checked, lanes: lanes.map((lane) => lane.state()) };
}

// Fills the form from a link; what the server does not offer stays as it is.
function restoreForm(state) {
  const texts = { text: state.text, "max-tokens": state.tokens, seed: state.seed };
  for (const [id, text] of Object.entries(texts)) if (typeof text === "string") at(id).value = text;
  const wanted = document.getElementById(`mode-${state.mode}`);
  if (wanted && !wanted.disabled) wanted.checked = true;
  if (typeof state.compare === "boolean") at("compare").checked = state.compare;
  const offers = (list, name) => schema[list].some((item) => item.name === name);
  (Array.isArray(state.lanes) ? state.lanes : []).slice(0, lanes.length).forEach((method, i) => {
    if (offers("decoders", method?.decoder) && offers("caches", method.cache)) lanes[i].fill(method);
  });
}

// Asks the last question again without its answer, for example with another decoder.
function again() {
  if (running) return;
  lanes.forEach((lane) => lane.removeLast(lastQuestion));
  at("text").value = lastQuestion;
  hint();
  at("compose").requestSubmit();
}

function restart() {
  if (running) return;
  lastQuestion = "";
  lanes.forEach((lane) => lane.reset());
  hint();
}

function stop() {
  running?.abort();
}

function showLanes() {
  at("lanes").classList.toggle("single", !at("compare").checked);
  lanes[1].element.hidden = !at("compare").checked;
  scale.fit();
}

function setUp() {
  const { model, defaults } = schema;
  at("docs").disabled = false;
  const names = schema.decoders.map(({ name }) => name);
  const first = { decoder: defaults?.decoder ?? names[0], cache: defaults?.cache ?? "none",
    knobs: defaults?.knobs, cacheArgs: defaults?.cache_args };
  const other = ["threshold", "vanilla", ...names].find((name) => names.includes(name) && name !== first.decoder);
  const second = { decoder: other ?? first.decoder, cache: first.cache };
  scale.charts = [];
  lanes = [new Lane("A", schema, first, ask, scale), new Lane("B", schema, second, ask, scale)];
  at("lanes").replaceChildren(...lanes.map((lane) => lane.element));
  openTogether(lanes.map((lane) => lane.element.querySelector(".knobs")));
  const facts = [model.id, model.family, model.block_size ? `blocks of ${model.block_size}` : null,
    model.max_length ? `context ${model.max_length}` : null,
    model.has_chat_template === false ? "no chat template" : null];
  at("model").textContent = facts.filter(Boolean).join(" · ");
  document.title = `${model.id} · unmask`;
  at("max-tokens").max = model.max_length ?? "";
  if (model.has_chat_template === false) {
    at("mode-chat").disabled = true;
    at("mode-prompt").checked = true;
  }
  if (model.id === "demo") {
    showExamples();
    if (!at("text").value) at("text").value = EXAMPLES[0][2];
  }
  const state = readLink();
  if (state) restoreForm(state);
  showLanes();
  hint();
}

// Opens and closes the knobs of all lanes together.
function openTogether(details) {
  for (const one of details) {
    one.addEventListener("toggle", () => details.forEach((other) => { other.open = one.open; }));
  }
}

function showExamples() {
  at("examples").replaceChildren("Try ", ...EXAMPLES.map(([name, kind, text, tokens]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = name;
    button.addEventListener("click", () => {
      restart();
      at(`mode-${kind}`).checked = true;
      at("text").value = text;
      at("max-tokens").value = String(tokens);
      hint();
      at("text").focus();
    });
    return button;
  }));
}

async function connect() {
  try {
    schema = await getJson("v1/schema", key());
    trouble("");
    at("access").open = false;
    setUp();
  } catch (error) {
    at("model").textContent = "not connected";
    if (error.status === 401) {
      at("access").open = true;
      trouble("This server requires an API key: enter it above and connect.");
      at("key").focus();
    } else {
      trouble(`The server's capabilities cannot be read (${error.message}).`);
    }
  }
}

// Opens the reference of decoders, caches, knobs and routes.
async function openReference() {
  const openapi = await getJson("openapi.json", key()).catch(() => null);
  showReference(at("reference-text"), schema, openapi);
  seek();
  at("reference").showModal();
  at("sought").focus();
}

function seek() {
  const count = filter(at("reference-text"), at("sought").value);
  at("found").textContent = at("sought").value.trim() ? `${count} section${count === 1 ? "" : "s"} with this text` : "";
}

function theme(name) {
  const chosen = THEMES.includes(name) ? name : "auto";
  document.documentElement.dataset.theme = chosen;
  at("theme").textContent = `Theme: ${chosen}`;
  try {
    localStorage.setItem("unmask-theme", chosen);
  } catch {
    // without storage the theme lasts as long as the tab
  }
}

function storedTheme() {
  try {
    return localStorage.getItem("unmask-theme");
  } catch {
    return null;
  }
}

at("compose").addEventListener("submit", run);
at("stop").addEventListener("click", stop);
at("again").addEventListener("click", again);
at("reset").addEventListener("click", restart);
at("compare").addEventListener("change", showLanes);
at("text").addEventListener("input", hint);
at("colors").addEventListener("change", () => lanes.forEach((lane) => lane.show(lane.at)));
at("link").addEventListener("click", () => copy(linkTo(formState()), at("link")));
at("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  connect();
});
at("curl-close").addEventListener("click", () => at("curl").close());
at("docs").addEventListener("click", openReference);
at("sought").addEventListener("input", seek);
at("reference-close").addEventListener("click", () => at("reference").close());
at("theme").addEventListener("click", () => {
  theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
});
for (const input of document.querySelectorAll('input[name="mode"]')) input.addEventListener("change", hint);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    at("compose").requestSubmit();
  } else if (event.key === "Escape" && running) stop();
});

// Moves the key that opened this page from the tab's storage into the form.
function takeKey() {
  try {
    at("key").value = sessionStorage.getItem("unmask-key") ?? at("key").value;
    sessionStorage.removeItem("unmask-key");
  } catch {
    // without storage there is no key to move
  }
}

theme(storedTheme());
takeKey();
hint();
connect();

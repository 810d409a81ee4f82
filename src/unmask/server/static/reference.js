// The reference of this server: its decoders, caches and knobs from the schema, and its routes.

import { helpText } from "./knobs.js";

function make(name, text = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function typeText(knob) {
  if (knob.choices) return knob.choices.join(" | ");
  return [knob.type === "list" ? `list of ${knob.of}` : knob.type, knob.range].filter(Boolean).join(" ");
}

// Returns a method, or the knobs of all of them, as a section that `filter` can hide.
function section(title, about, knobs) {
  const part = make("section");
  part.append(make("h3", title));
  if (about) part.append(make("p", about, "about"));
  const list = make("dl");
  for (const knob of knobs) {
    const term = make("dt");
    term.append(make("code", knob.name), ` ${typeText(knob)}`);
    list.append(term, make("dd", helpText(knob)));
  }
  if (knobs.length) part.append(list);
  return part;
}

function routes(openapi) {
  const part = make("section");
  part.append(make("h3", "Routes"));
  const list = make("dl");
  for (const [path, methods] of Object.entries(openapi.paths)) {
    for (const [name, { summary }] of Object.entries(methods)) {
      const term = make("dt");
      term.append(make("code", `${name.toUpperCase()} ${path}`));
      list.append(term, make("dd", summary ?? ""));
    }
  }
  part.append(list);
  return part;
}

// Fills `element` with the reference; `openapi` is null where it cannot be read.
export function showReference(element, schema, openapi) {
  const method = ({ name, title, source, refused, knobs }, kind) =>
    section(`${kind} ${name}`, [title, source, refused ? `not for this model: ${refused}` : ""].filter(Boolean).join(" · "), knobs);
  element.replaceChildren(
    ...schema.decoders.map((item) => method(item, "decoder")),
    ...schema.caches.map((item) => method(item, "cache")),
    section("every decoder", "Knobs that all decoders have.", schema.shared),
    ...(openapi ? [routes(openapi)] : []),
  );
}

// Hides the sections without the text. Returns the number of those that are left.
export function filter(element, text) {
  const sought = text.trim().toLowerCase();
  const sections = [...element.children];
  sections.forEach((part) => { part.hidden = !part.textContent.toLowerCase().includes(sought); });
  return sections.filter((part) => !part.hidden).length;
}

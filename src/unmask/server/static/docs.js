// The reference of the HTTP API, made from this server's own /openapi.json.

const HANDED = "unmask-key"; // the page for the key leaves it here
const MAX_DEPTH = 3; // nested objects that are opened in place; schemas may be recursive
const byId = (id) => document.getElementById(id);

function element(name, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  if (text) made.textContent = text;
  return made;
}

/** The schema that a reference names, or the schema itself. */
export function resolve(schema, root) {
  const path = schema?.$ref?.replace("#/", "").split("/");
  return path ? path.reduce((at, key) => at?.[key], root) ?? {} : schema ?? {};
}

/** A schema's type in a few words: "integer (>= 0)", "list of string", "null or object Tool". */
export function typeOf(schema, root) {
  const own = resolve(schema, root);
  const choices = own.anyOf ?? own.oneOf;
  if (choices) return [...new Set(choices.map((each) => typeOf(each, root)))].join(" or ");
  if (own.const !== undefined) return JSON.stringify(own.const);
  if (own.enum) return own.enum.map((value) => JSON.stringify(value)).join(", ");
  if (own.type === "array") return `list of ${own.items ? typeOf(own.items, root) : "any"}`;
  const bounds = [
    ["minimum", ">="], ["exclusiveMinimum", ">"], ["maximum", "<="], ["exclusiveMaximum", "<"],
  ].filter(([key]) => own[key] !== undefined).map(([key, sign]) => `${sign} ${own[key]}`);
  const name = own.type === "object" && own.title && own.properties ? ` ${own.title}` : "";
  return `${own.type ?? "any"}${name}${bounds.length ? ` (${bounds.join(", ")})` : ""}`;
}

/** The objects inside a schema whose fields are shown below a field. */
function objectsOf(schema, root) {
  const own = resolve(schema, root);
  if (own.properties) return [own];
  const inside = own.anyOf ?? own.oneOf ?? (own.items ? [own.items] : []);
  return inside.flatMap((each) => objectsOf(each, root));
}

function fieldTable(schema, root, depth = 0) {
  const table = element("table");
  const required = new Set(schema.required ?? []);
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const own = resolve(field, root);
    const row = element("tr");
    const usual = own.default === undefined ? "" : `, default ${JSON.stringify(own.default)}`;
    row.append(
      element("td", name),
      element("td", typeOf(field, root) + (required.has(name) ? ", required" : usual)),
    );
    const text = element("td", field.description ?? own.description ?? "");
    for (const inner of depth < MAX_DEPTH ? objectsOf(field, root) : []) {
      const more = element("details");
      more.append(element("summary", `fields of ${inner.title ?? "the object"}`));
      more.addEventListener("toggle", () => {
        if (more.open && more.children.length === 1) more.append(fieldTable(inner, root, depth + 1));
      });
      text.append(more);
    }
    row.append(text);
    table.append(row);
  }
  return table;
}

function schemaOf(content, root) {
  return resolve(content?.["application/json"]?.schema, root);
}

function bodyOf(operation, root) {
  const parts = [];
  const request = schemaOf(operation.requestBody?.content, root);
  if (request.description) parts.push(element("p", request.description));
  if (request.properties) parts.push(element("h3", "Body"), fieldTable(request, root));
  const answers = element("table");
  for (const [status, response] of Object.entries(operation.responses ?? {})) {
    const row = element("tr");
    const kinds = Object.keys(response.content ?? {}).join(", ");
    row.append(element("td", status), element("td", kinds), element("td", response.description ?? ""));
    answers.append(row);
  }
  const reply = schemaOf(operation.responses?.["200"]?.content, root);
  if (reply.properties) parts.push(element("h3", "Reply"), fieldTable(reply, root));
  parts.push(element("h3", "Statuses"), answers);
  return parts;
}

function routeOf(path, method, operation, root) {
  const route = element("details", "", { className: "route" });
  const head = element("summary");
  head.append(
    element("span", method.toUpperCase(), { className: "method" }),
    element("code", path),
    ` ${operation.summary ?? ""}`,
  );
  route.append(head);
  const fields = Object.keys(schemaOf(operation.requestBody?.content, root).properties ?? {});
  route.dataset.words = [path, method, operation.summary, ...fields].join(" ").toLowerCase();
  route.addEventListener("toggle", () => {
    if (route.open && route.children.length === 1) route.append(...bodyOf(operation, root));
  });
  return route;
}

function show(root) {
  byId("title").textContent = `${root.info.title} ${root.info.version}: ${root.info.summary ?? ""}`;
  const routes = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => routeOf(path, method, operation, root)));
  byId("routes").replaceChildren(...routes);
}

async function load(key) {
  const bytes = key && String.fromCharCode(...new TextEncoder().encode(key)); // headers are bytes
  const headers = key ? { Authorization: `Bearer ${bytes}` } : {};
  let trouble = "";
  try {
    const response = await fetch("openapi.json", { headers, cache: "no-store" });
    byId("connect").hidden = response.status !== 401;
    if (response.ok) show(await response.json());
    else if (response.status !== 401) trouble = `The server answers with ${response.status}.`;
    else if (key) trouble = "This key is not accepted.";
  } catch {
    trouble = "The server cannot be reached.";
  }
  byId("trouble").textContent = trouble;
  byId("trouble").hidden = !trouble;
}

if (globalThis.document) {
  byId("connect").addEventListener("submit", (event) => {
    event.preventDefault();
    load(byId("key").value.trim());
  });
  byId("filter").addEventListener("input", (event) => {
    const word = event.target.value.trim().toLowerCase();
    for (const route of byId("routes").children) route.hidden = !route.dataset.words.includes(word);
  });
  const handed = sessionStorage.getItem(HANDED);
  sessionStorage.removeItem(HANDED);
  load(handed ?? "");
}

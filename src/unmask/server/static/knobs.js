// Forms made of the schema's knobs. Only what differs from the default is sent.

let serial = 0;

function spelled(value) {
  if (value === null || value === undefined) return "none";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

// The value of a text, by the knob's type. Throws what is wrong with it.
function read(knob, text) {
  if (knob.type === "int" || knob.type === "float") {
    const value = Number(text);
    const isRight = Number.isFinite(value) && (knob.type === "float" || Number.isInteger(value));
    if (!isRight) throw new Error(`${knob.name}: ${text} is no ${knob.type === "int" ? "whole " : ""}number`);
    return value;
  }
  if (knob.type === "bool") return text === "true";
  if (knob.type === "list") {
    const items = text.replace(/^\[|\]$/g, "").split(",").map((part) => part.trim()).filter(Boolean);
    return items.map((part) => read({ name: knob.name, type: knob.of ?? "str" }, part));
  }
  return text;
}

export class Knobs {
  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    this.fields = [];
  }

  // Groups are [title, knobs, where, values]; `where` says in which part of the request they go.
  show(groups) {
    this.fields = [];
    const sections = groups.filter(([, knobs]) => knobs.length).map(([title, knobs, where, values]) => {
      const set = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.textContent = title;
      set.append(legend, ...knobs.map((knob) => this.row(knob, where, values?.[knob.name])));
      return set;
    });
    this.element.replaceChildren(...sections);
  }

  row(knob, where, value) {
    serial += 1;
    const row = document.createElement("div");
    row.className = "knob";
    const label = document.createElement("label");
    label.textContent = knob.name;
    label.htmlFor = `knob-${serial}`;
    const input = this.input(knob);
    input.id = label.htmlFor;
    input.dataset.knob = knob.name;
    input.setAttribute("aria-describedby", `help-${serial}`);
    if (value !== undefined && value !== knob.default) input.value = spelled(value);
    const help = document.createElement("span");
    help.className = "help";
    help.role = "tooltip";
    help.id = `help-${serial}`;
    help.textContent = `${knob.help} (default: ${spelled(knob.default)})`;
    row.append(label, input, help);
    const field = { knob, where, input };
    const note = () => {
      row.classList.toggle("is-changed", input.value !== "");
      this.changed(field);
    };
    input.addEventListener("change", note);
    row.classList.toggle("is-changed", input.value !== "");
    this.fields.push(field);
    return row;
  }

  input(knob) {
    const choices = knob.type === "bool" ? ["true", "false"] : knob.choices;
    if (choices) {
      const select = document.createElement("select");
      select.append(new Option(spelled(knob.default), ""));
      for (const choice of choices) {
        if (String(choice) !== String(knob.default)) select.append(new Option(choice, choice));
      }
      return select;
    }
    const input = document.createElement("input");
    input.placeholder = spelled(knob.default);
    if (knob.type === "int" || knob.type === "float") {
      input.type = "number";
      input.step = knob.type === "int" ? "1" : "any";
      if (knob.min !== undefined && knob.min !== null) input.min = knob.min;
      if (knob.max !== undefined && knob.max !== null) input.max = knob.max;
    }
    return input;
  }

  // {decoder: {knob: value}, cache: {...}}; throws for a value that its type cannot be.
  values() {
    const found = { decoder: {}, cache: {} };
    for (const { knob, where, input } of this.fields) {
      if (input.validity?.badInput) throw new Error(`${knob.name}: that is no number`);
      if (input.value.trim() !== "") found[where][knob.name] = read(knob, input.value.trim());
    }
    return found;
  }

  count() {
    return this.fields.filter(({ input }) => input.value.trim() !== "").length;
  }

  value(name) {
    return this.fields.find(({ knob }) => knob.name === name)?.input.value ?? "";
  }
}

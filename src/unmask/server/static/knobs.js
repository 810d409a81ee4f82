// Forms for the knobs of the schema. Only values that differ from the default are sent.

let serial = 0;

const EXPLAINS = "Help for a knob is shown here: point at it, or move to it with Tab.";

function valueText(value) {
  if (value === null || value === undefined) return "none";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

// Returns the default in words; a default of null is often a rule, which the help describes.
function defaultText(knob) {
  return knob.default === null && knob.help.includes("default:") ? "default" : valueText(knob.default);
}

function helpText(knob) {
  return defaultText(knob) === "default" ? knob.help : `${knob.help} (default: ${valueText(knob.default)})`;
}

// Parses a text by the type of its knob. Throws an Error for an invalid one.
function read(knob, text) {
  if (knob.type === "int" || knob.type === "float") {
    const value = Number(text);
    const isRight = Number.isFinite(value) && (knob.type === "float" || Number.isInteger(value));
    if (!isRight) throw new Error(`${knob.name}: ${text} is not ${knob.type === "int" ? "an integer" : "a number"}`);
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
  // Rows go into `element`, the help of the active row into `explains`; `changed(field)` is called after edits.
  constructor(element, explains, changed) {
    this.element = element;
    this.explains = explains;
    this.changed = changed;
    this.fields = [];
  }

  // Groups are [title, knobs, where, values]; `where` is the part of the request.
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
    this.explains.textContent = EXPLAINS;
  }

  row(knob, where, value) {
    serial += 1;
    const row = document.createElement("div");
    row.className = "knob";
    const label = document.createElement("label");
    label.append(...knob.name.split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]));
    label.htmlFor = `knob-${serial}`;
    const input = this.input(knob);
    input.id = label.htmlFor;
    input.dataset.knob = knob.name;
    input.setAttribute("aria-describedby", `help-${serial}`);
    if (value !== undefined && value !== knob.default) input.value = valueText(value);
    const help = document.createElement("span");
    help.className = "unseen";
    help.id = `help-${serial}`;
    help.textContent = helpText(knob);
    const explain = () => { this.explains.textContent = `${knob.name}: ${help.textContent}`; };
    row.addEventListener("pointerenter", explain);
    row.addEventListener("focusin", explain);
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
      select.append(new Option(defaultText(knob), ""));
      for (const choice of choices) {
        if (String(choice) !== String(knob.default)) select.append(new Option(choice, choice));
      }
      return select;
    }
    const input = document.createElement("input");
    input.placeholder = defaultText(knob);
    if (knob.type === "int" || knob.type === "float") {
      input.type = "number";
      input.step = knob.type === "int" ? "1" : "any";
      if (knob.min !== undefined && knob.min !== null) input.min = knob.min;
      if (knob.max !== undefined && knob.max !== null) input.max = knob.max;
    }
    return input;
  }

  // Returns {decoder: {knob: value}, cache: {...}}. Throws an Error for an invalid value.
  values() {
    const values = { decoder: {}, cache: {} };
    for (const { knob, where, input } of this.fields) {
      if (input.validity?.badInput) throw new Error(`${knob.name}: not a number`);
      if (input.value.trim() !== "") values[where][knob.name] = read(knob, input.value.trim());
    }
    return values;
  }

  // Returns the texts of the knobs of one part of the request, valid or not.
  typed(where) {
    const fields = this.fields.filter((field) => field.where === where && field.input.value.trim() !== "");
    return Object.fromEntries(fields.map(({ knob, input }) => [knob.name, input.value.trim()]));
  }

  count() {
    return this.fields.filter(({ input }) => input.value.trim() !== "").length;
  }
}

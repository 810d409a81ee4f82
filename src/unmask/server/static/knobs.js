// Forms for the knobs of the schema. Only values that differ from the default are sent.

let serial = 0;

const EXPLAINS = "Help for a knob is shown here: point at it, or move to it with Tab.";
const LEAST_HIDDEN = 3; // fewer rare knobs are shown with the others

function valueText(value) {
  if (value === null || value === undefined) return "none";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

// Returns the default in words; a default of null is often a rule, which the help describes.
function defaultText(knob) {
  return knob.default === null && knob.help.includes("default:") ? "default" : valueText(knob.default);
}

export function helpText(knob) {
  return defaultText(knob) === "default" ? knob.help : `${knob.help} (default: ${valueText(knob.default)})`;
}

// Parses a text by the type of its knob. Throws an Error for an invalid one.
function read(knob, text) {
  if (knob.type === "int" || knob.type === "float") {
    const value = Number(text);
    const isRight = Number.isFinite(value) && (knob.type === "float" || Number.isInteger(value));
    if (!isRight) throw new Error(`${text} is not ${knob.type === "int" ? "an integer" : "a number"}`);
    const isOut = value < knob.min || value > knob.max || value <= knob.above || value >= knob.below;
    if (isOut) throw new Error(`${text} must be ${knob.range ?? "in the range of the help"}`);
    return value;
  }
  if (knob.type === "bool") return text === "true";
  if (knob.type === "list") {
    const items = text.replace(/^\[|\]$/g, "").split(",").map((part) => part.trim()).filter(Boolean);
    return items.map((part) => read({ name: knob.name, type: knob.of ?? "str" }, part));
  }
  return text;
}

function make(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

// Returns the value of a field, undefined for an empty one. Throws an Error for an invalid one.
function valueOf({ knob, input }) {
  if (input.validity?.badInput) throw new Error("not a number");
  const text = input.value.trim();
  return text === "" ? undefined : read(knob, text);
}

// Shows a problem at its field, or removes it.
function mark(field, problem) {
  field.wrong.textContent = problem;
  field.wrong.hidden = !problem;
  if (problem) {
    field.input.setAttribute("aria-invalid", "true");
    field.rest?.setAttribute("open", "");
  } else field.input.removeAttribute("aria-invalid");
}

export class Knobs {
  // Rows go into `element`, the help of the active row into `explains`; `changed(field)` is called after edits.
  constructor(element, explains, changed) {
    this.element = element;
    this.explains = explains;
    this.changed = changed;
    this.fields = [];
  }

  // Groups are [title, knobs, where, values]; `where` is the part of the request. In a group the common
  // knobs come first; rare ones are behind a summary.
  show(groups) {
    this.fields = [];
    const sections = groups.filter(([, knobs]) => knobs.length).map(([title, knobs, where, values]) => {
      const set = document.createElement("fieldset");
      set.append(make("legend", "", title));
      const common = knobs.filter((knob) => knob.is_common);
      let rare = knobs.filter((knob) => !knob.is_common);
      if (rare.length < LEAST_HIDDEN) {
        common.push(...rare);
        rare = [];
      }
      set.append(...common.map((knob) => this.row(knob, where, values?.[knob.name])));
      if (rare.length) set.append(this.rest(rare, where, values, common.length));
      return set;
    });
    this.element.replaceChildren(...sections);
    this.explains.textContent = EXPLAINS;
  }

  rest(knobs, where, values, numCommon) {
    const details = make("details", "rest");
    const names = knobs.slice(0, 3).map(({ name }) => name).join(", ");
    details.append(make("summary", "", `${knobs.length} ${numCommon ? "more" : "knobs"}: ${names}${knobs.length > 3 ? "…" : ""}`));
    const rows = make("div", "rows");
    rows.append(...knobs.map((knob) => this.row(knob, where, values?.[knob.name], details)));
    details.append(rows);
    return details;
  }

  row(knob, where, value, rest = null) {
    serial += 1;
    const row = make("div", "knob");
    const label = document.createElement("label");
    label.append(...knob.name.split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]));
    label.htmlFor = `knob-${serial}`;
    const input = this.input(knob);
    input.id = label.htmlFor;
    input.dataset.knob = knob.name;
    if (value !== undefined && value !== knob.default) input.value = valueText(value);
    const range = make("span", "range", knob.range ?? "");
    const wrong = make("span", "wrong");
    wrong.id = `wrong-${serial}`;
    wrong.hidden = true;
    wrong.setAttribute("role", "alert");
    const help = make("span", "unseen", helpText(knob));
    help.id = `help-${serial}`;
    input.setAttribute("aria-describedby", `${help.id} ${wrong.id}`);
    const explain = () => { this.explains.textContent = `${knob.name}: ${help.textContent}`; };
    row.addEventListener("pointerenter", explain);
    row.addEventListener("focusin", explain);
    const name = make("span", "name");
    name.append(label, range);
    row.append(name, input, wrong, help);
    const field = { knob, where, input, wrong, rest };
    const note = () => {
      row.classList.toggle("is-changed", input.value !== "");
      this.isValid(field);
      this.changed(field);
    };
    input.addEventListener("change", note);
    input.addEventListener("input", () => { if (!wrong.hidden) this.isValid(field); });
    const isChanged = input.value !== "";
    row.classList.toggle("is-changed", isChanged);
    if (isChanged) rest?.setAttribute("open", "");
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

  // Shows at a field what is wrong with it, and returns whether nothing is.
  isValid(field) {
    try {
      valueOf(field);
      mark(field, "");
      return true;
    } catch (error) {
      mark(field, error.message);
      return false;
    }
  }

  // Returns {decoder: {knob: value}, cache: {...}}. Throws an Error for an invalid value.
  values() {
    const values = { decoder: {}, cache: {} };
    const wrong = this.fields.filter((field) => !this.isValid(field));
    if (wrong.length) throw new Error(wrong.map(({ knob, wrong: { textContent } }) => `${knob.name}: ${textContent}`).join("; "));
    for (const field of this.fields) {
      const value = valueOf(field);
      if (value !== undefined) values[field.where][field.knob.name] = value;
    }
    return values;
  }

  // Shows the server's refusal at the knob that it names, such as decoder_args.steps, if there is one.
  refuse(param, message) {
    const [, part, name] = param?.match(/^(?:(decoder|cache)_args\.)?(\w+)$/) ?? [];
    const field = this.fields.find(({ knob, where, input }) =>
      knob.name === name && (!part || where === part) && input.value.trim() !== "");
    if (field) mark(field, message);
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

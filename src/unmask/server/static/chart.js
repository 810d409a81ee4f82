// Bar charts of tokens per forward, on one scale for all lanes.

const SVG = "http://www.w3.org/2000/svg";
const LEAST_BARS = 24, LEAST_TOKENS = 4;

function make(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  parent?.append(element);
  return element;
}

function word(className, text, parent) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

// The axes of several charts, which fit the longest decode and the highest bar.
export class Scale {
  constructor() {
    this.charts = [];
  }

  fit() {
    const shown = this.charts.filter(({ element }) => !element.closest("[hidden]"));
    const bars = Math.max(LEAST_BARS, ...shown.map(({ counts }) => counts.length));
    const most = Math.max(LEAST_TOKENS, ...shown.flatMap(({ counts }) => counts));
    if (bars === this.bars && most === this.most) return;
    this.bars = bars;
    this.most = most;
    this.charts.forEach((chart) => chart.fit());
  }
}

export class Chart {
  // `jump(forward)` is called when a bar is clicked.
  constructor(element, scale, jump) {
    this.element = element;
    this.scale = scale;
    this.counts = [];
    const title = document.createElement("p");
    title.textContent = "Tokens written per forward, end tokens too";
    this.plot = document.createElement("div");
    this.plot.className = "plot";
    this.top = word("top", "", this.plot);
    word("zero", "0", this.plot);
    this.svg = make("svg", { role: "img", preserveAspectRatio: "none" });
    this.plot.append(this.svg);
    word("first", "1", this.plot);
    word("axis", "forward", this.plot);
    this.last = word("last", "", this.plot);
    element.replaceChildren(title, this.plot);
    // y grows upward in this group, so that bars need no update when the scale changes
    this.up = make("g", { transform: "scale(1,-1)" }, this.svg);
    this.svg.addEventListener("click", (event) => {
      const { left, width } = this.svg.getBoundingClientRect();
      const forward = Math.floor(((event.clientX - left) / width) * this.scale.bars) + 1;
      if (forward >= 1 && forward <= this.counts.length) jump(forward);
    });
    scale.charts.push(this);
    this.clear();
    this.fit();
  }

  clear() {
    this.draw([], 0);
  }

  draw(counts, current) {
    this.counts = counts;
    const bars = this.up.children;
    while (bars.length > counts.length) this.up.lastElementChild.remove();
    for (let at = 0; at < counts.length; at += 1) {
      const bar = bars[at] ?? make("rect", { x: at + 0.1, y: 0, width: 0.8 }, this.up);
      bar.classList.toggle("current", at + 1 === current);
      if (bar.getAttribute("height") === String(counts[at])) continue;
      bar.setAttribute("height", String(counts[at]));
      const title = make("title", {});
      title.textContent = `forward ${at + 1}: ${counts[at]}`;
      bar.replaceChildren(title);
    }
    const most = Math.max(0, ...counts);
    this.svg.setAttribute("aria-label", counts.length
      ? `Tokens written per forward: ${counts.length} forwards, most ${most}` : "Tokens written per forward: none yet");
    this.scale.fit();
  }

  fit() {
    const { bars, most } = this.scale;
    this.svg.setAttribute("viewBox", `0 ${-most} ${bars} ${most}`);
    this.top.textContent = String(most);
    this.last.textContent = String(bars);
  }
}

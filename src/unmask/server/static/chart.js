// Tokens per forward as bars; a bar is a place to jump to.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 48, LEAST_BARS = 24, LEAST_TOKENS = 4;

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

export class Chart {
  constructor(element, jump) {
    this.element = element;
    this.jump = jump;
    this.bars = [];
    this.most = 0;
  }

  clear() {
    this.element.replaceChildren();
    this.bars = [];
    this.most = 0;
  }

  draw(counts, current) {
    const top = Math.max(0, ...counts);
    const most = Math.max(LEAST_TOKENS, top);
    if (most !== this.most || counts.length < this.bars.length || !this.svg) this.begin(most);
    while (this.bars.length < counts.length) this.add(counts[this.bars.length]);
    this.svg.setAttribute("viewBox", `0 0 ${Math.max(counts.length, LEAST_BARS)} ${HEIGHT}`);
    this.bars.forEach((bar, i) => bar.classList.toggle("current", i + 1 === current));
    const sum = counts.reduce((a, b) => a + b, 0);
    const mean = counts.length ? (sum / counts.length).toFixed(2) : "0";
    this.svg.setAttribute("aria-label",
      `Tokens per forward: ${counts.length} forwards, mean ${mean}, most ${top}`);
    this.label.textContent = counts.length ? `${mean} a forward, at most ${top}` : "";
  }

  begin(most) {
    this.most = most;
    this.bars = [];
    this.svg = make("svg", { role: "img", preserveAspectRatio: "none", viewBox: `0 0 ${LEAST_BARS} ${HEIGHT}` });
    this.label = document.createElement("p");
    this.element.replaceChildren(this.svg, this.label);
  }

  add(count) {
    const height = Math.max(1, (HEIGHT * count) / this.most);
    const at = this.bars.length;
    const bar = make("rect", { x: at + 0.1, y: HEIGHT - height, width: 0.8, height });
    bar.addEventListener("click", () => this.jump(at + 1));
    const title = make("title", {});
    title.textContent = `forward ${at + 1}: ${count}`;
    bar.append(title);
    this.bars.push(bar);
    this.svg.append(bar);
  }
}

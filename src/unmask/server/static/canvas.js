// Draws a frame into an element, one span per position. The model's text is never parsed as markup.

import { AGAIN, END, FIXED, NEW, OPEN, SPECIAL } from "./frames.js";

const CELL = "\u00a0\u00a0";

function classOf(frame, i) {
  const mark = frame.marks[i];
  if (mark & OPEN) return mark & AGAIN ? "position open again" : "position open";
  if (mark & FIXED) return mark & SPECIAL ? "position special" : "position fixed";
  if (mark & NEW) {
    const sure = frame.sure[i];
    const level = sure < 0.3 ? "low" : sure < 0.7 || Number.isNaN(sure) ? "middle" : "high";
    return `position new ${level}${mark & END ? " end" : ""}`;
  }
  return mark & END ? "position end" : "position old";
}

function textOf(frame, i) {
  const mark = frame.marks[i];
  if (mark & OPEN) return CELL;
  if (mark & END) return i > 0 && frame.marks[i - 1] & END ? "·" : "∎";
  const text = frame.texts[i];
  return mark & NEW ? text.replaceAll("\n", "↵\n") : text;
}

// Returns a color of a share in [0, 1], light enough for dark text: violet, green, yellow.
function heat(share) {
  return `hsl(${Math.round(280 - 230 * share)} 65% ${Math.round(74 + 6 * share)}%)`;
}

// Returns the background of a decided position by confidence or order; "" for the colors of the classes.
function heatOf(frame, i, colors) {
  const mark = frame.marks[i];
  if (colors === "new" || mark & (OPEN | FIXED | SPECIAL)) return "";
  const share = colors === "order" ? (frame.order[i] - 1) / Math.max(1, frame.forward - 1) : frame.sure[i];
  return Number.isNaN(share) || (colors === "order" && !frame.order[i]) ? "" : heat(share);
}

export function draw(element, frame, colors = "new") {
  const { texts } = frame;
  while (element.childElementCount > texts.length) element.lastElementChild.remove();
  while (element.childElementCount < texts.length) element.append(document.createElement("span"));
  for (let i = 0; i < texts.length; i += 1) {
    const span = element.children[i];
    const background = heatOf(frame, i, colors);
    const className = `${classOf(frame, i)}${background ? " heat" : ""}`;
    const text = textOf(frame, i);
    if (span.className !== className) span.className = className;
    if (span.textContent !== text) span.textContent = text;
    if (span.style.background !== background) span.style.background = background;
  }
  if (element.scrollHeight > element.clientHeight) {
    const fresh = element.querySelector(".new");
    if (fresh) element.scrollTop = fresh.offsetTop - element.offsetTop - element.clientHeight / 2;
  }
}

// Describes a position in words.
export function describe(frame, i) {
  const mark = frame.marks[i];
  if (mark & OPEN) return `position ${i}: undecided`;
  const text = JSON.stringify(frame.texts[i]);
  const sure = frame.sure[i];
  const forward = frame.order[i] ? `, forward ${frame.order[i]}` : "";
  const others = frame.likeliest[i].map(([other, share]) => `${JSON.stringify(other)} ${share.toFixed(2)}`).join(", ");
  return `position ${i}: ${text}${Number.isNaN(sure) ? "" : `, confidence ${sure.toFixed(2)}`}${forward}`
    + (others ? `, likeliest ${others}` : "");
}

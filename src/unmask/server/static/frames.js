// The canvases of one decode, kept small: texts are shared, confidences and marks are arrays of numbers.

export const OPEN = 1, NEW = 2, AGAIN = 4, END = 8, FIXED = 16, SPECIAL = 32;

export class Frames {
  constructor() {
    this.list = [];
    this.words = new Map();
  }

  get length() {
    return this.list.length;
  }

  add(frame) {
    const { slots } = frame;
    const texts = new Array(slots.length);
    const sure = new Float32Array(slots.length);
    const marks = new Uint8Array(slots.length);
    slots.forEach((slot, i) => {
      texts[i] = this.shared(slot.text ?? "");
      sure[i] = slot.confidence ?? NaN;
      marks[i] = (slot.open && OPEN) | (slot.new && NEW) | (slot.taken_back && AGAIN)
        | (slot.end && END) | (slot.fixed && FIXED) | (slot.special && SPECIAL);
    });
    const last = this.list.at(-1);
    if (last && last.forward === frame.forward) {
      // the last word on a decode: the same forward again, with what its end cut off or filled in
      marks.forEach((mark, i) => { marks[i] |= (last.marks[i] ?? 0) & (NEW | AGAIN); });
      this.list.pop();
    }
    const count = marks.reduce((sum, mark) => sum + ((mark & NEW) !== 0), 0);
    this.list.push({ forward: frame.forward, open: frame.num_open, texts, sure, marks, count });
  }

  shared(text) {
    const found = this.words.get(text);
    if (found !== undefined) return found;
    this.words.set(text, text);
    return text;
  }

  // Tokens that each forward wrote.
  counts() {
    return this.list.filter((frame) => frame.forward > 0).map((frame) => frame.count);
  }
}

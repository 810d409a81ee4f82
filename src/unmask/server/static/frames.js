// The frames of one decode in compact form: shared texts, and typed arrays of confidences and marks.

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
    slots.forEach((position, i) => {
      texts[i] = this.shared(position.text ?? "");
      sure[i] = position.confidence ?? NaN;
      marks[i] = (position.open && OPEN) | (position.new && NEW) | (position.taken_back && AGAIN)
        | (position.end && END) | (position.fixed && FIXED) | (position.special && SPECIAL);
    });
    const last = this.list.at(-1);
    if (last && last.forward === frame.forward) {
      // the final frame: the same forward again, after positions were removed or filled in
      marks.forEach((mark, i) => { marks[i] |= (last.marks[i] ?? 0) & (NEW | AGAIN); });
      this.list.pop();
    }
    const before = last && last.forward === frame.forward ? last : this.list.at(-1);
    const order = new Uint32Array(marks.length); // the forward that wrote each token
    const likeliest = slots.map((position) => position.alternatives ?? []); // and what else it could have been
    marks.forEach((mark, i) => {
      if (mark & NEW) order[i] = frame.forward;
      else if (!(mark & (OPEN | FIXED)) && before && !(before.marks[i] & OPEN) && before.texts[i] === texts[i]) {
        order[i] = before.order[i] ?? 0; // 0: unknown, as after an insertion to the left
        likeliest[i] = before.likeliest[i] ?? [];
      }
      if (last && last.forward === frame.forward && mark & NEW && !likeliest[i].length) likeliest[i] = last.likeliest[i] ?? [];
    });
    const count = marks.reduce((sum, mark) => sum + ((mark & NEW) !== 0), 0);
    this.list.push({ forward: frame.forward, open: frame.num_open, texts, sure, marks, order, likeliest, count });
  }

  shared(text) {
    const known = this.words.get(text);
    if (known !== undefined) return known;
    this.words.set(text, text);
    return text;
  }

  // Returns the number of tokens written by each forward.
  counts() {
    return this.list.filter((frame) => frame.forward > 0).map((frame) => frame.count);
  }
}

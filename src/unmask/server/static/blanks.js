// "The {3} sat" as parts, as the command line reads it: {3} a blank, {{ and }} braces.

export function parse(text) {
  const parts = [""];
  for (const piece of text.split(/(\{\{|\}\}|\{\d+\}|[{}])/)) {
    if (piece === "{" || piece === "}") {
      throw new Error(`A single ${piece} in the text: a blank is {3}, a brace is doubled, ${piece}${piece}.`);
    }
    if (/^\{\d+\}$/.test(piece)) {
      parts.push(Number(piece.slice(1, -1)));
      continue;
    }
    const plain = piece === "{{" ? "{" : piece === "}}" ? "}" : piece;
    if (typeof parts.at(-1) === "string") parts[parts.length - 1] += plain;
    else parts.push(plain);
  }
  return parts.filter((part) => part !== "");
}

export function hasBlank(text) {
  return /(^|[^{])(\{\{)*\{\d+\}/.test(text);
}

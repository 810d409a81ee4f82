// Parses "The {3} sat" into parts, as the command line does: {3} is a blank, {{ and }} are braces.

export function parse(text) {
  const parts = [""];
  for (const piece of text.split(/(\{\{|\}\}|\{\d+\}|[{}])/)) {
    if (piece === "{" || piece === "}") {
      throw new Error(`A single ${piece} in the text: write {3} for a blank, ${piece}${piece} for a brace.`);
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

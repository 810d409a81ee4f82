// Requests: JSON in, JSON or server-sent events out.

export class Refused extends Error {
  // `param` is the field that the server names, if it names one.
  constructor(status, message, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

// A header is a string of bytes, one per character: the key's in UTF-8.
export function headers(key) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key.trim()));
  return bytes ? { Authorization: `Bearer ${bytes}` } : {};
}

export async function getJson(path, key) {
  const response = await reach(path, { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// Returns the reply to a body as a blob.
export async function postForBlob(path, body, key) {
  const options = { method: "POST", headers: { "Content-Type": "application/json", ...headers(key) }, body: JSON.stringify(body) };
  const response = await reach(path, options);
  if (!response.ok) throw await refusal(response);
  return response.blob();
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
}

async function refusal(response) {
  const body = await response.text();
  let message = body.slice(0, 500), param = null;
  try {
    const reply = JSON.parse(body);
    const error = reply.error ?? reply.detail ?? body;
    message = typeof error === "string" ? error : error.message ?? JSON.stringify(error);
    param = error.param ?? null;
  } catch {
    // not JSON: shown as it is
  }
  return new Refused(response.status, `${response.status}: ${message || response.statusText}`, param);
}

// Yields the JSON of every event until [DONE]. Throws an Error for an error event.
export async function* events(path, body, key, signal) {
  const response = await reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Error("The answer broke off: the server closed the connection.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message ?? String(chunk.error));
      yield chunk;
    }
  }
}

// Returns a shell command for a request. Inside single quotes only single quotes need escaping.
export function curl(path, body, key) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = new URL(path, document.baseURI).href;
  const lines = [`curl -N ${quote(url)}`, "-H 'Content-Type: application/json'"];
  if (key) lines.push('-H "Authorization: Bearer $UNMASK_API_KEY"');
  lines.push(`-d ${quote(JSON.stringify(body, null, 1))}`);
  return lines.join(" \\\n  ");
}

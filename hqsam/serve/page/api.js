/** Requests to the server. What it refuses is an `ApiError`; a server that cannot be reached is an `OfflineError`. */

export class ApiError extends Error {
  constructor(status, body) {
    super(textOf(body?.detail) || `The server answered with status ${status}.`);
    this.status = status;
    this.body = body;
  }
}

export class OfflineError extends Error {}

function textOf(detail) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((part) => part.msg ?? "").join("; ");
  return "";
}

/** Send a request and return the response of success. */
export async function request(method, path, { body, signal } = {}) {
  const headers = method === "GET" ? {} : { "X-Hqsam-Request": "1", "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new OfflineError("The server cannot be reached.");
  }
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return response;
}

const json = async (...parts) => (await request(...parts)).json();
const of = (id, what) => `/api/images/${encodeURIComponent(id)}/${what}`;

export const api = {
  state: () => json("GET", "/api/state"),
  statistics: () => json("GET", "/api/statistics"),
  images: (offset, limit) => json("GET", `/api/images?offset=${offset}&limit=${limit}`),
  fileUrl: (id) => of(id, "file"),
  thumbnailUrl: (id) => of(id, "thumbnail"),
  file: async (id, signal) => (await request("GET", of(id, "file"), { signal })).blob(),
  annotations: (id) => json("GET", of(id, "annotations")),
  save: (id, body) => json("PUT", of(id, "annotations"), { body }),
  predict: (id, body, signal) => json("POST", of(id, "predict"), { body, signal }),
  propose: (id) => json("POST", of(id, "proposals"), { body: {} }),
  prefetch: (ids) => request("POST", "/api/prefetch", { body: { ids } }),
  embeddingUrl: (id, part) => of(id, `embedding?part=${part}`),
};

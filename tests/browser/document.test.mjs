import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { AnnotationDocument } from "../../hqsam/serve/page/document.js";

/** A server of one image: counts revisions, and fails in the ways of `failures`, one a request. */
class Server {
  constructor() {
    this.current = { revision: 3, width: 4, height: 2, state: "todo", objects: [object("old")] };
    this.failures = [];
    this.puts = [];
  }

  fetch = async (path, { method, body }) => {
    const failure = this.failures.shift();
    if (failure === "offline") throw new TypeError("fetch failed");
    if (typeof failure === "number") return reply(failure, { detail: "no" });
    if (method === "GET") return reply(200, this.current);
    const sent = JSON.parse(body);
    this.puts.push(sent);
    if (sent.revision !== this.current.revision) return reply(409, { detail: "other", current: this.current });
    this.current = { ...this.current, ...sent, revision: sent.revision + 1 };
    if (failure === "lost answer") throw new TypeError("connection lost");
    return reply(200, { revision: this.current.revision });
  };
}

const reply = (status, body) => ({ ok: status < 400, status, json: async () => structuredClone(body) });
const object = (id, label = "") => ({
  id, label, rle: { size: [2, 4], counts: "8" }, status: "accepted", source: "clicks", score: null, prompts: null, seconds: null,
});
const ids = (document) => document.now.objects.map(({ id, label }) => id + label);

let server;
let document;

beforeEach(async () => {
  server = new Server();
  globalThis.fetch = server.fetch;
  document = await new AnnotationDocument({ id: "i", width: 4, height: 2 }).load();
});

const add = (id) => document.apply({ objects: [...document.now.objects, object(id)] });

test("each action is saved with the revision that it was made from", async () => {
  add("a");
  assert.ok(!document.isSaved);
  assert.ok(await document.flush());
  add("b");
  await document.flush();
  assert.deepEqual(server.puts.map(({ revision }) => revision), [3, 4]);
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old", "a", "b"]);
});

test("actions during a request are saved together, after it", async () => {
  for (const id of ["a", "b", "c"]) add(id);
  await document.flush();
  assert.deepEqual(server.puts.map(({ objects }) => objects.length), [2, 4]);
});

test("undo and redo are saved too", async () => {
  add("a");
  add("b");
  document.undo();
  document.undo();
  document.redo();
  assert.deepEqual([ids(document), document.canUndo, document.canRedo], [["old", "a"], true, true]);
  await document.flush();
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old", "a"]);
  add("c");
  assert.ok(!document.canRedo);
});

test("looking at an object is no action", async () => {
  document.look({ selected: "old" });
  assert.equal(document.selected.id, "old");
  assert.ok(document.isSaved && !document.canUndo && !server.puts.length);
});

test("offline it is not saved, and sent again as soon as it can be", async () => {
  const states = [];
  document.addEventListener("saved", () => states.push(document.saved.state));
  server.failures = ["offline", 503];
  add("a");
  await document.flush();
  assert.deepEqual(states, ["saving", "unsaved", "saving", "unsaved", "saving", "saved"]);
  assert.equal(server.current.revision, 4);
});

test("an answer that was lost is no conflict", async () => {
  server.failures = ["lost answer"];
  add("a");
  assert.ok(await document.flush());
  assert.equal(document.conflict, null);
  add("b");
  assert.ok(await document.flush());
});

test("what was changed after an answer was lost is no conflict either", async () => {
  server.failures = ["lost answer", "offline"];
  add("a");
  await new Promise(setImmediate);
  document.apply({ objects: [object("old"), object("a", "later")] });
  assert.ok(await document.flush());
  assert.deepEqual(server.current.objects.map(({ id, label }) => id + label), ["old", "alater"]);
});

test("an action while the last one is reported as saved is saved too", async () => {
  let once = false;
  document.addEventListener("saved", () => {
    if (document.saved.state !== "saved" || once) return;
    once = true;
    add("b");
  });
  add("a");
  await document.flush();
  await document.flush();
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old", "a", "b"]);
  assert.ok(document.isSaved);
});

test("what the server refuses is shown and not repeated", async () => {
  server.failures = [422];
  add("a");
  assert.ok(!(await document.flush()));
  assert.deepEqual(document.saved, { state: "unsaved", detail: "no" });
  add("b");
  assert.ok(await document.flush());
});

async function conflict() {
  server.current = { ...server.current, revision: 9, objects: [object("old", "!"), object("theirs")] };
  let told = 0;
  document.addEventListener("conflict", () => told++);
  add("mine");
  assert.ok(!(await document.flush()));
  add("more");
  await document.flush();
  assert.deepEqual([told, document.saved.state, server.current.revision], [1, "conflict", 9]);
}

test("a conflict is never written over: take theirs", async () => {
  await conflict();
  document.takeTheirs();
  assert.deepEqual(ids(document), ["old!", "theirs"]);
  assert.ok(document.isSaved);
  document.undo(); // ours can be had back, as an action of its own
  await document.flush();
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old", "mine", "more"]);
});

test("a conflict is never written over: keep both", async () => {
  await conflict();
  document.keepBoth();
  assert.ok(await document.flush());
  assert.deepEqual(ids(document), ["old!", "theirs", "mine", "more"]);
  assert.equal(server.current.revision, 10);
});

test("what was undone before somebody else's annotations were taken cannot be done again over them", async () => {
  add("undone");
  await document.flush();
  server.current = { ...server.current, revision: 9, objects: [object("theirs")] };
  document.undo();
  assert.ok(!(await document.flush()));
  document.takeTheirs();
  assert.ok(!document.canRedo);
});

const proposal = (id) => ({ ...object(id), status: "proposed", source: "proposal" });

test("proposals that the server made meanwhile are no conflict", async () => {
  let told = 0;
  document.addEventListener("conflict", () => told++);
  server.current = { ...server.current, revision: 4, objects: [object("old"), proposal("p")] };
  add("mine");
  document.look({ selected: "mine" });
  assert.ok(await document.flush());
  assert.deepEqual([told, document.now.selected, ids(document)], [0, "mine", ["old", "mine", "p"]]);
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old", "mine", "p"]);
  document.undo(); // the action, and not the proposals that came with it
  assert.deepEqual(ids(document), ["old", "p"]);
  assert.ok(await document.flush());
});

test("a proposal that was deleted here does not come back", async () => {
  server.current = { ...server.current, revision: 4, objects: [object("old"), proposal("p")] };
  await document.refresh();
  server.current = { ...server.current, revision: 5, state: "done" };
  document.apply({ objects: [object("old")] });
  await document.flush();
  assert.deepEqual([Boolean(document.conflict), ids(document)], [true, ["old"]]);
});

test("what is being clicked stays so when proposals are taken", async () => {
  add("mine");
  await document.flush();
  const draft = { id: "mine", points: [[0, 0, 1]] };
  document.look({ selected: "mine", draft });
  server.current = { ...server.current, revision: 5, objects: [...server.current.objects, proposal("p")] };
  await document.refresh();
  assert.deepEqual([ids(document), document.now.selected, document.now.draft], [["old", "mine", "p"], "mine", draft]);
  server.current = { ...server.current, revision: 6, objects: [object("mine", "changed")] };
  await document.refresh();
  assert.deepEqual([document.now.selected, document.now.draft], [null, null]);
});

test("proposals beside a change of somebody else's are one", async () => {
  server.current = { ...server.current, revision: 4, objects: [object("old", "theirs"), proposal("p")] };
  add("mine");
  assert.ok(!(await document.flush()));
  assert.ok(document.conflict);
});

test("an answer from before the last action is not taken for the newest annotations", async () => {
  const { fetch } = globalThis;
  let release;
  const held = new Promise((resolve) => (release = resolve));
  globalThis.fetch = async (path, options) => {
    const answer = await fetch(path, options);
    if (options.method === "GET") await held;
    return answer;
  };
  const refreshed = document.refresh();
  add("a");
  assert.ok(await document.flush());
  release();
  await refreshed;
  assert.deepEqual(ids(document), ["old", "a"]);
});

test("newer annotations of the server can be taken as an action", async () => {
  server.current = { ...server.current, revision: 5, objects: [object("p")] };
  await document.refresh();
  assert.deepEqual(ids(document), ["p"]);
  document.undo();
  await document.flush();
  assert.deepEqual(server.current.objects.map(({ id }) => id), ["old"]);
});

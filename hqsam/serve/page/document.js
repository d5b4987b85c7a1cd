/**
 * The annotations of one image: what is on the screen, how it came about, and that the server has it.
 *
 * A snapshot {objects, state, selected, draft} is never changed, only replaced; undo and redo walk between them. Each
 * change is sent at once. The server refuses what was not made from its newest revision, and nothing is sent again
 * before the user has said what to do.
 */
import { api, ApiError } from "./api.js";
import { addedProposals, mergeObjects, plainObject, sameObjects } from "./merge.js";

const LONGEST_HISTORY = 500;
const LONGEST_WAIT_MS = 15000;

export class AnnotationDocument extends EventTarget {
  #past = [];
  #future = [];
  #base = []; // objects as the server last had them, as far as we know
  #revision = 0;
  #dirty = false;
  #saving = null;
  #failures = 0;
  #unanswered = []; // objects that were sent, and that the server may or may not have

  constructor(image) {
    super();
    this.image = image;
    this.now = { objects: [], state: "todo", selected: null, draft: null };
    this.conflict = null; // the server's annotations, when they are not what ours were made from
    this.saved = { state: "saved", detail: "" };
  }

  async load() {
    this.#take(await api.annotations(this.image.id));
    this.#changed();
    return this;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  get isSaved() {
    return !this.#dirty && !this.#saving && !this.conflict;
  }

  object(id) {
    return this.now.objects.find((object) => object.id === id) ?? null;
  }

  get selected() {
    return this.object(this.now.selected);
  }

  /** An action of the user: can be undone, and is saved. */
  apply(change) {
    this.#past.push(this.now);
    if (this.#past.length > LONGEST_HISTORY) this.#past.shift();
    this.#future = [];
    this.#replace({ ...this.now, ...change });
  }

  /** What is no action: which object is selected, which one prompts belong to. */
  look(change) {
    this.now = { ...this.now, ...change };
    this.#changed();
  }

  undo() {
    if (this.canUndo) this.#walk(this.#past, this.#future);
  }

  redo() {
    if (this.canRedo) this.#walk(this.#future, this.#past);
  }

  /** Throw away what the server does not have, and take what it has. */
  takeTheirs() {
    this.#past.push(this.now);
    this.#future = [];
    this.#take(this.conflict);
    this.conflict = null;
    this.#dirty = false;
    this.#tell("saved");
    this.#changed();
  }

  /** Keep the server's objects and ours. */
  keepBoth() {
    const theirs = this.conflict;
    const others = theirs.objects.map(plainObject);
    const objects = mergeObjects(this.#base, this.now.objects, others, newId);
    this.conflict = null;
    this.#accepted(theirs.revision, others);
    this.apply({ objects, draft: null });
  }

  /** Wait until everything is saved; false when it cannot be. */
  async flush() {
    await this.#saving;
    return this.isSaved;
  }

  /** Take the server's newest annotations, as one action; only when everything is saved. */
  async refresh() {
    const known = this.#revision;
    const newest = await api.annotations(this.image.id);
    if (!this.isSaved || this.#revision !== known || newest.revision === known) return;
    const { now } = this;
    this.#past.push(now);
    this.#future = [];
    this.#take(newest);
    const current = this.object(now.selected);
    if (current && sameObjects(current, now.objects.find(({ id }) => id === now.selected))) {
      this.now = { ...this.now, selected: now.selected, draft: now.draft };
    }
    this.#changed();
  }

  #take(annotations) {
    this.#accepted(annotations.revision, annotations.objects.map(plainObject));
    this.now = { objects: this.#base, state: annotations.state, selected: null, draft: null };
  }

  #walk(from, to) {
    to.push(this.now);
    this.#replace(from.pop());
  }

  #replace(next) {
    const same = next.objects === this.now.objects && next.state === this.now.state;
    this.now = next;
    this.#changed();
    if (same) return;
    this.#dirty = true;
    if (!this.conflict) this.#saving ??= this.#save();
  }

  async #save() {
    let goesOn = true;
    while (this.#dirty && goesOn) goesOn = await this.#send();
    this.#saving = null; // before anybody is told, who may change something again
    if (goesOn) this.#tell("saved");
  }

  /** Whether to go on. */
  async #send() {
    const { objects, state } = this.now;
    this.#dirty = false;
    this.#tell("saving");
    try {
      const { revision } = await api.save(this.image.id, { revision: this.#revision, state, objects });
      this.#accepted(revision, objects);
      return true;
    } catch (error) {
      this.#dirty = true;
      return this.#failed(error, objects);
    }
  }

  #accepted(revision, objects) {
    this.#revision = revision;
    this.#base = objects;
    this.#failures = 0;
    this.#unanswered = [];
  }

  /** Whether the server has what we sent, or what we began with, and nothing else but proposals of its own. */
  #isOurs({ revision, objects }, sent) {
    const added = (known) => addedProposals(known, objects, this.#base);
    let proposals = [sent, ...this.#unanswered].map(added).find(Boolean);
    if (!proposals) {
      proposals = added(this.#base);
      if (!proposals?.length) return false; // somebody else may have changed the state
    }
    this.#accepted(revision, objects.map(plainObject)); // the answer was lost
    if (proposals.length) this.#insert(proposals);
    return true;
  }

  /** Add objects to what is on the screen and to all that undo and redo lead to. */
  #insert(added) {
    const longer = new Map(); // snapshots of the same objects stay snapshots of the same objects
    const extend = (snapshot) => {
      const { objects } = snapshot;
      if (!longer.has(objects)) longer.set(objects, [...objects, ...added]);
      return { ...snapshot, objects: longer.get(objects) };
    };
    this.#past = this.#past.map(extend);
    this.#future = this.#future.map(extend);
    this.now = extend(this.now);
    this.#changed();
  }

  /** Whether to go on. */
  async #failed(error, objects) {
    if (error instanceof ApiError && error.status === 409 && error.body?.current) {
      const { current } = error.body;
      if (this.#isOurs(current, objects)) return true;
      this.conflict = current;
      this.#tell("conflict", "Somebody else changed this image.");
      this.dispatchEvent(new Event("conflict"));
      return false;
    }
    if (error instanceof ApiError && error.status < 500) {
      this.#tell("unsaved", error.message);
      return false;
    }
    if (this.#unanswered.at(-1) !== objects) this.#unanswered.push(objects);
    this.#tell("unsaved", `${error.message} Trying again.`);
    await online(Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.#failures++));
    return true;
  }

  #tell(state, detail = "") {
    this.saved = { state, detail };
    this.dispatchEvent(new Event("saved"));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** A name for a new object. */
export function newId() {
  if (globalThis.crypto?.randomUUID) return crypto.randomUUID();
  // pages that are not served from this machine or through TLS have no randomUUID
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Resolves after a while, or as soon as the browser is online again. */
function online(wait) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, wait);
    function done() {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", done);
      resolve();
    }
    globalThis.addEventListener?.("online", done);
  });
}

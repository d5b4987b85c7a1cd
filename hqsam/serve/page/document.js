/**
 * The annotations of one image: what is on the screen, how it came about, and that the server has it.
 *
 * A snapshot {objects, state, selected, draft} is never changed, only replaced; undo and redo walk between them. Each
 * change is sent at once. The server refuses what was not made from its newest revision, and nothing is sent again
 * before the user has said what to do.
 */
import { api, ApiError } from "./api.js";
import { mergeObjects, plainObject, sameObjects } from "./merge.js";

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
    this.#take(this.conflict);
    this.conflict = null;
    this.#dirty = false;
    this.#tell("saved");
    this.#changed();
  }

  /** Keep the server's objects and ours. */
  keepBoth() {
    const theirs = this.conflict;
    const objects = mergeObjects(this.#base, this.now.objects, theirs.objects.map(plainObject), newId);
    this.conflict = null;
    this.#base = theirs.objects.map(plainObject);
    this.#revision = theirs.revision;
    this.apply({ objects, draft: null });
  }

  /** Wait until everything is saved; false when it cannot be. */
  async flush() {
    await this.#saving;
    return this.isSaved;
  }

  /** Take the server's newest annotations, as one action; only when everything is saved. */
  async refresh() {
    const newest = await api.annotations(this.image.id);
    if (!this.isSaved || newest.revision === this.#revision) return;
    this.#past.push(this.now);
    this.#future = [];
    this.#take(newest);
    this.#changed();
  }

  #take(annotations) {
    this.#revision = annotations.revision;
    this.#base = annotations.objects.map(plainObject);
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
    this.#saving ??= this.#save().finally(() => {
      this.#saving = null;
    });
  }

  async #save() {
    while (this.#dirty && !this.conflict) {
      const { objects, state } = this.now;
      this.#dirty = false;
      this.#tell("saving");
      try {
        const { revision } = await api.save(this.image.id, { revision: this.#revision, state, objects });
        this.#accepted(revision, objects);
      } catch (error) {
        this.#dirty = true;
        if (!(await this.#failed(error, objects))) return;
      }
    }
    if (!this.#dirty && !this.conflict) this.#tell("saved");
  }

  #accepted(revision, objects) {
    this.#revision = revision;
    this.#base = objects;
    this.#failures = 0;
  }

  /** Whether to go on. */
  async #failed(error, objects) {
    if (error instanceof ApiError && error.status === 409 && error.body?.current) {
      const { current } = error.body;
      if (sameObjects(current.objects, objects)) {
        this.#accepted(current.revision, objects); // it had been written, only the answer was lost
        return true;
      }
      this.conflict = current;
      this.#tell("conflict", "Somebody else changed this image.");
      this.dispatchEvent(new Event("conflict"));
      return false;
    }
    if (error instanceof ApiError && error.status < 500) {
      this.#tell("unsaved", error.message);
      return false;
    }
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

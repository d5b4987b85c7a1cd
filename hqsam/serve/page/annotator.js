/**
 * What the user does to an image: prompts, brush, proposals, labels. Knows the document and the predictor, and nothing
 * of the page; what the page shows beside the document is told by the events "preview", "pending" and "message".
 *
 * The draft is the object that clicks go to: {id, points, box, answer, chosen, candidate, fed}. `answer` is the model's,
 * {source, token, count of masks}: without the masks, which history would keep; `chosen` is the place of the object's
 * among them; `candidate` is null where the model's score chose; `fed` is what of an earlier answer the model was given
 * with the prompts, {answer, candidate}.
 */
import { newId } from "./document.js";
import { decodeRle, encodeRle, maskArea, maskHas } from "./rle.js";
import { Latest } from "./predictor.js";

const HOVER_MS = 35;
const LONGEST_PAUSE_S = 30; // a longer one is no work on a mask

export class Annotator extends EventTarget {
  #hovers;
  #timer = null;
  #queue = Promise.resolve();
  #masks = new WeakMap(); // rle -> mask
  #worked = 0;
  #seen = performance.now();

  constructor(predictor, fusion) {
    super();
    this.predictor = predictor;
    this.fusion = fusion;
    this.document = null;
    this.preview = null; // {x, y, fusion, answer, chosen}
    this.pending = []; // points that wait for their mask
    this.pendingBox = null;
    this.waiting = 0; // prompts without an answer yet
    this.label = "";
    this.#hovers = new Latest((prompt) => predictor.predict(this.document.image, prompt));
  }

  open(document) {
    this.unhover();
    this.document = document;
    this.pending = [];
    this.pendingBox = null;
    this.#masks = new WeakMap(); // of the images before; they would fill the memory
    this.#worked = 0;
  }

  /** The mask of an object, decoded once. */
  maskOf(object) {
    if (!this.#masks.has(object.rle)) this.#masks.set(object.rle, decodeRle(object.rle));
    return this.#masks.get(object.rle);
  }

  /** The user is at work: pauses do not count as time of a mask. */
  touch() {
    const now = performance.now();
    this.#worked += Math.min(LONGEST_PAUSE_S, (now - this.#seen) / 1000);
    this.#seen = now;
  }

  // Prompts

  /** Show what a click would give; only where it would begin an object. */
  hover(x, y) {
    clearTimeout(this.#timer);
    if (this.preview?.x === x && this.preview?.y === y && this.preview.fusion === this.fusion) return;
    this.#timer = setTimeout(() => this.#look(x, y), HOVER_MS);
  }

  unhover() {
    clearTimeout(this.#timer);
    this.#hovers?.drop();
    this.#show(null);
  }

  async #look(x, y) {
    const { document, fusion } = this;
    if (!document || document.now.draft || this.waiting) return;
    const prompt = { points: [[x, y, 1]], box: null, previous: null, fusion, multimask: true };
    const answer = await this.#hovers.request(prompt).catch(() => null);
    if (!answer || document !== this.document || document.now.draft || this.waiting) return;
    this.#show({ x, y, fusion, answer, chosen: choose(answer, null) });
  }

  #show(preview) {
    if (preview === this.preview) return;
    this.preview = preview;
    this.#tell("preview");
    if (preview) this.#tell("answer", preview.answer);
  }

  /** A point: `label` 1 is inside, 0 outside. */
  click(x, y, label) {
    const point = [x, y, label];
    const seen = this.preview;
    this.unhover();
    const { now } = this.document;
    if (!label && !now.draft && !this.waiting && !this.document.selected) {
      return this.#say("Begin with a left click on the object, or with a box around it.");
    }
    if (!label && !now.draft && !this.waiting && this.document.selected) this.edit();
    const change = (draft) => ({ ...draft, points: [...draft.points, point], candidate: null, fed: feedback(draft) });
    return this.#enqueue([point], change, seen);
  }

  /** A box in pixels, both corners inside of it. */
  box(box) {
    this.unhover();
    this.pendingBox = box;
    return this.#enqueue([], () => ({ ...emptyDraft(), box }), null, null);
  }

  /** Choose among SAM's three candidates, 0 to 2, or leave it to the model with null. */
  choose(candidate) {
    if (!this.document?.now.draft) return this.#say("Candidates belong to an object that is being clicked.");
    return this.#enqueue([], (draft) => ({ ...draft, candidate }));
  }

  setFusion(fusion) {
    this.fusion = fusion;
    this.unhover();
    if (!this.document?.now.draft?.answer) return undefined;
    return this.#enqueue([], (draft) => draft);
  }

  /** One after the other: each prompt may feed back the answer to the one before it. `target` is the object's id. */
  #enqueue(points, change, seen = null, target = this.document.now.draft?.id) {
    const { document } = this;
    this.pending = [...this.pending, ...points];
    this.waiting++;
    this.#tell("pending");
    const run = async () => {
      try {
        if (target && !document.object(target)) return; // deleted meanwhile, or undone
        await this.#answer(document, change(document.now.draft ?? emptyDraft()), seen);
      } catch (error) {
        this.#say(error.message);
      } finally {
        this.pending = this.pending.filter((point) => !points.includes(point));
        if (--this.waiting === 0) this.pendingBox = null;
        this.#tell("pending");
      }
    };
    return (this.#queue = this.#queue.then(run));
  }

  async #answer(document, draft, seen) {
    const { points, box, fed, candidate } = draft;
    const { fusion } = this;
    const isAmbiguous = points.length === 1 && points[0][2] === 1 && !box && !fed;
    const prompt = { points, box, previous: fed, fusion, multimask: isAmbiguous || candidate !== null };
    const wasThere = document.object(draft.id);
    const isSeen = isAmbiguous && seen?.fusion === fusion && seen.x === points[0][0] && seen.y === points[0][1];
    const answer = isSeen ? seen.answer : await this.predictor.predict(document.image, prompt);
    if (!isSeen) this.#tell("answer", answer);
    if (wasThere && !document.object(draft.id)) return undefined; // likewise
    const chosen = choose(answer, candidate);
    const { mask, rle, score } = answer.masks[chosen];
    if (!maskArea(mask)) return this.#say("The model finds no object for this.");
    this.#masks.set(rle, mask);
    const object = {
      ...this.#newObject(document, draft.id),
      rle,
      source: box && !points.length ? "box" : "clicks",
      score,
      prompts: { points, box },
    };
    const { source, token, masks } = answer;
    return this.#put(document, object, { ...draft, answer: { source, token, count: masks.length }, chosen });
  }

  #newObject(document, id) {
    const old = document.object(id);
    const seconds = Math.round(((old?.seconds ?? 0) + this.#worked) * 10) / 10;
    this.#worked = 0;
    return { label: this.label, ...old, id, status: "accepted", seconds };
  }

  /** Add an object or put it in the place of its older self. */
  #put(document, object, draft) {
    const { objects } = document.now;
    const at = objects.findIndex((other) => other.id === object.id);
    const next = at < 0 ? [...objects, object] : objects.with(at, object);
    if (at >= 0) this.#masks.delete(objects[at].rle); // undo decodes it again
    this.#commit(next, { selected: object.id, draft }, document);
  }

  #commit(objects, change = {}, document = this.document) {
    const state = document.now.state === "todo" && objects.some(isAccepted) ? "started" : document.now.state;
    document.apply({ objects, state, ...change });
  }

  /** The object is as it should be: the next click begins another one. */
  finish() {
    this.#leave({ selected: null, draft: null });
  }

  /** Leave the draft; behind prompts that still wait for their masks, which belong to it. */
  #leave(change) {
    const { document } = this;
    if (this.waiting) this.#queue = this.#queue.then(() => document.look(change));
    else document?.look(change);
  }

  /** Let clicks go to the selected object, from its prompts or else from its box. */
  edit() {
    const object = this.document.selected;
    if (!object) return this.#say("Select an object to edit it.");
    const { x, y, w, h } = this.maskOf(object);
    const from = object.prompts ?? { points: [], box: [x, y, x + w - 1, y + h - 1] };
    const draft = { ...emptyDraft(), id: object.id, points: from.points ?? [], box: from.box ?? null };
    this.unhover();
    this.document.look({ draft });
    return undefined;
  }

  // Brush

  /** The object that a stroke changes, {id, mask}; null when there is nothing to erase. */
  strokeTarget(erase) {
    const object = this.document.selected;
    if (object) return { id: object.id, mask: this.maskOf(object) };
    if (erase) return this.#say("Select an object to erase from it."), null;
    const { width, height } = this.document.image;
    return { id: newId(), mask: { width, height, x: 0, y: 0, w: 0, h: 0, bits: new Uint8Array(0) } };
  }

  stroked(id, mask) {
    if (!mask.w) return this.document.object(id) && this.remove(id);
    const rle = encodeRle(mask);
    this.#masks.set(rle, mask);
    const object = { ...this.#newObject(this.document, id), rle, source: "brush", score: null, prompts: null };
    return this.#put(this.document, object, null);
  }

  // Objects

  select(id) {
    if (id !== this.document.now.selected || this.waiting) this.#leave({ selected: id, draft: null });
  }

  /** The smallest visible object at a pixel. */
  at(x, y, isHidden) {
    const found = this.document.now.objects.filter((object) => !isHidden(object) && maskHas(this.maskOf(object), x, y));
    return found.sort((one, two) => maskArea(this.maskOf(one)) - maskArea(this.maskOf(two)))[0] ?? null;
  }

  /** Select the next object, or the one before. */
  step(by) {
    const { objects, selected } = this.document.now;
    if (!objects.length) return;
    const order = [...objects].sort((one, two) => isAccepted(one) - isAccepted(two)); // as in the panel
    const at = order.findIndex((object) => object.id === selected);
    const next = at < 0 ? (by > 0 ? 0 : order.length - 1) : (at + by + order.length) % order.length;
    this.select(order[next].id);
  }

  setLabel(id, text) {
    const letters = [...text.replace(/[\x00-\x1f\x7f]/g, " ").trim()]; // an emoji is not cut in two
    const label = letters.slice(0, 200).join("");
    const { objects } = this.document.now;
    const object = this.document.object(id);
    if (!object) return; // deleted while its label was being written
    if (isAccepted(object)) this.label = label;
    if (object.label === label) return;
    this.#commit(objects.map((object) => (object.id === id ? { ...object, label } : object)));
  }

  remove(id) {
    const object = this.document.object(id);
    if (!object) return;
    const next = object.status === "proposed" ? this.#proposalAfter(id) : null;
    this.#commit(this.document.now.objects.filter((other) => other.id !== id), { selected: next, draft: null });
  }

  accept(id) {
    const object = this.document.object(id);
    if (object?.status !== "proposed") return this.#say("Select a proposal to accept it.");
    const accepted = { ...object, status: "accepted", seconds: this.#newObject(this.document, id).seconds };
    const objects = this.document.now.objects.map((other) => (other.id === id ? accepted : other));
    return this.#commit(objects, { selected: this.#proposalAfter(id), draft: null });
  }

  acceptAll() {
    const { objects } = this.document.now;
    this.#commit(objects.map((object) => (isAccepted(object) ? object : { ...object, status: "accepted" })), { draft: null });
  }

  #proposalAfter(id) {
    const proposed = this.document.now.objects.filter((object) => object.status === "proposed");
    const at = proposed.findIndex((object) => object.id === id);
    return (proposed[at + 1] ?? proposed[at - 1])?.id ?? null;
  }

  setState(state) {
    this.document.apply({ state });
  }

  #say(text) {
    this.#tell("message", text);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function emptyDraft() {
  return { id: newId(), points: [], box: null, answer: null, chosen: 0, candidate: null, fed: null };
}

/** What of a draft's answer goes back to the model with the next point. */
function feedback({ answer, chosen }) {
  return answer ? { answer, candidate: chosen } : null;
}

/** The place of the mask that counts. */
function choose({ masks }, candidate) {
  if (candidate !== null) return Math.min(candidate, masks.length - 1);
  return masks.reduce((best, { score }, at) => ((score ?? 0) > (masks[best].score ?? 0) ? at : best), 0);
}

function isAccepted(object) {
  return object.status !== "proposed";
}

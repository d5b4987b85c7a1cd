/** Objects of one image: what of them is sent, whether they are the same, and how two people's changes become one. */

const FIELDS = ["id", "label", "rle", "status", "source", "score", "prompts", "seconds"];

/** An object as the server takes it: without what it adds itself. */
export function plainObject(object) {
  return Object.fromEntries(FIELDS.map((field) => [field, object[field] ?? null]));
}

/** Whether two objects, or two lists of them, say the same. */
export function sameObjects(one, two) {
  return JSON.stringify([one].flat().map(plainObject)) === JSON.stringify([two].flat().map(plainObject));
}

/**
 * What the server proposed beside `ours`; null where it has, or lacks, anything else.
 *
 * @param {object[]} ours
 * @param {object[]} theirs
 * @param {object[]} base what both sides knew: a proposal of these that is not among ours was deleted
 */
export function addedProposals(ours, theirs, base) {
  const known = new Set([...ours, ...base].map(({ id }) => id));
  const isAdded = ({ id, status }) => status === "proposed" && !known.has(id);
  return sameObjects(ours, theirs.filter((object) => !isAdded(object))) ? theirs.filter(isAdded).map(plainObject) : null;
}

/**
 * Both sides' changes since what both knew.
 *
 * What only one side changed, added or deleted is taken from it. An object that both changed stays twice, mine under a
 * new name; an object that one side deleted and the other changed stays.
 *
 * @param {object[]} base what both sides began with
 * @param {object[]} mine
 * @param {object[]} theirs
 * @param {() => string} newId
 */
export function mergeObjects(base, mine, theirs, newId) {
  const [old, ours, others] = [base, mine, theirs].map((list) => new Map(list.map((object) => [object.id, object])));
  const merged = [];
  for (const their of theirs) {
    const [before, my] = [old.get(their.id), ours.get(their.id)];
    const untouched = before && sameObjects(before, their);
    if (!my) {
      if (!untouched) merged.push(their); // new, or changed after I deleted it
    } else if (untouched || sameObjects(my, their)) {
      merged.push(my);
    } else {
      merged.push(their);
      if (!(before && sameObjects(before, my))) merged.push({ ...my, id: newId() });
    }
  }
  for (const my of mine) {
    const before = old.get(my.id);
    if (!others.has(my.id) && !(before && sameObjects(before, my))) merged.push(my);
  }
  return merged;
}

/**
 * The mask decoder, in a worker: onnxruntime-web on the GPU where there is one, else on the processor.
 *
 * Messages are {id, kind, ...}; the answer is {id, result} or {id, error}. Kinds: "start", "embed" and "predict".
 */
import { heedClicks } from "./heeding.js";
import { axisWeights, maskOfLogits, shownLogits, wholeLogits } from "./postprocess.js";

const MOST_THREADS = 4;
const ANSWERS_KEPT = 64; // of 1 MB at most; one that is gone is not fed back
const IMAGES_KEPT = 3; // of 12 MB each
const PAD_TOKEN = -1;
const OUTSIDE = -16; // the logit of what is certainly not in the object, of SAM's mask and of HQ's (hqsam/types.py)
const BOX_CORNERS = [2, 3];
/** Of SAM's four candidates, which answer. */
const SINGLE = [0];
const MULTIPLE = [1, 2, 3];

let ort;
let session;
let frame;
let model; // fingerprint of its weights
let provider;
let opened; // what sessions are made from
let isTried = false;
let running = Promise.resolve();
const embeddings = new Map();
const answers = new Map();
let lastAnswer = 0;

async function start({ runtime, decoder, imageSize, fingerprint, force }) {
  [frame, model] = [imageSize, fingerprint];
  const bytes = new Uint8Array(await (await fetched(decoder)).arrayBuffer());
  opened = { runtime, bytes };
  const tries = force ? [force] : (await hasGpu()) ? ["webgpu", "wasm"] : ["wasm"];
  for (const name of tries) {
    try {
      await open(name, runtime, bytes);
      return { provider: nameOfProvider(), outputs: session.outputNames };
    } catch (error) {
      if (name === tries[tries.length - 1]) throw error;
    }
  }
}

async function open(name, runtime, bytes) {
  ort = await import(new URL(`ort.${name}.min.mjs`, runtime).href);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  const options = { executionProviders: [name], graphOptimizationLevel: "all", logSeverityLevel: 3 };
  session = await ort.InferenceSession.create(bytes, options);
  provider = name;
}

function nameOfProvider() {
  if (provider === "webgpu") return "WebGPU";
  const { numThreads } = ort.env.wasm;
  return numThreads > 1 ? `WASM, ${numThreads} threads` : "WASM, 1 thread";
}

async function hasGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    const isSoftware = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter;
    return Boolean(adapter) && !isSoftware;
  } catch {
    return false;
  }
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  // features of one model and the decoder of another would give masks of neither
  const made = response.headers.get("X-Fingerprint");
  if (made && !model.startsWith(made)) throw new Error("The server has another model now.");
  return response;
}

/** Keep what the encoder made of an image. */
async function embed({ image, width, height, urls }) {
  const names = session.inputNames.filter((name) => name in urls);
  const parts = await Promise.all(names.map((name) => tensorOf(urls[name])));
  const [rows, columns] = parts[0].inputSize;
  const [, , low] = parts[0].tensor.dims.map((side) => side * 4); // logits are four times as fine as the embedding
  const tensors = Object.fromEntries(names.map((name, at) => [name, parts[at].tensor]));
  // a decoder with HQ makes masks of as much as it gets features of: none of the padding
  const canCrop = "hq_features" in tensors;
  const shown = [rows, columns]
    .map((kept) => shownLogits(kept, frame, low))
    .map(({ made, right }) => ({ made: canCrop ? made : low, right }));
  if (canCrop) tensors.hq_features = topLeft(tensors.hq_features, ...shown.map(({ made }) => made));
  const kept = {
    tensors,
    scale: [columns / width, rows / height],
    low,
    shown,
    columns: axisWeights(width, columns, frame, low),
    rows: axisWeights(height, rows, frame, low),
  };
  if (!isTried && !(await isAble(kept))) {
    await open("wasm", opened.runtime, opened.bytes);
    return embed({ image, width, height, urls });
  }
  remember(embeddings, image, IMAGES_KEPT, kept);
  return { provider: nameOfProvider() };
}

/** The first run compiles, on a graphics card for seconds, and shows whether the graphics card can do it at all. */
async function isAble(kept) {
  isTried = true;
  try {
    const output = await run({ ...kept.tensors, ...promptTensors(kept, [[0, 0, 1]], null, null) });
    if (Object.values(output).every(({ data }) => data.every(Number.isFinite))) return true;
  } catch (error) {
    if (provider === "wasm") throw error;
  }
  return provider === "wasm";
}

/** One after the other: on a graphics card a session refuses a second run beside the first, and a click follows hovers. */
function run(inputs) {
  const output = running.then(() => session.run(inputs));
  running = output.catch(() => {});
  return output;
}

/** The first rows and columns of a tensor (1, C, H, W). */
function topLeft(tensor, rows, columns) {
  const [, channels, height, width] = tensor.dims;
  if (rows === height && columns === width) return tensor;
  const part = new Float32Array(channels * rows * columns);
  for (let channel = 0, to = 0; channel < channels; channel++) {
    for (let y = 0; y < rows; y++, to += columns) {
      const from = (channel * height + y) * width;
      part.set(tensor.data.subarray(from, from + columns), to);
    }
  }
  return new ort.Tensor("float32", part, [1, channels, rows, columns]);
}

async function tensorOf(url) {
  const response = await fetched(url);
  const numbers = (name) => response.headers.get(name).split(",").map(Number);
  const data = halfToFloat(new Uint16Array(await response.arrayBuffer()));
  return { tensor: new ort.Tensor("float32", data, numbers("X-Shape")), inputSize: numbers("X-Input-Size") };
}

function halfToFloat(halves) {
  const single = new Float32Array(halves.length);
  if (globalThis.Float16Array) {
    single.set(new Float16Array(halves.buffer));
    return single;
  }
  const table = halfTable();
  for (let at = 0; at < halves.length; at++) single[at] = table[halves[at]];
  return single;
}

function halfTable() {
  const table = new Float32Array(65536);
  for (let half = 0; half < 65536; half++) {
    const sign = half & 0x8000 ? -1 : 1;
    const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
    if (exponent === 31) table[half] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) table[half] = sign * fraction * 2 ** -24;
    else table[half] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

async function predict({ image, points, box, previous, fusion, multimask }) {
  const begin = performance.now();
  const kept = embeddings.get(image);
  if (!kept) throw new Error("this image has no embedding here");
  const known = previous && answers.get(previous.answer);
  const fed = known?.logits[previous.candidate];
  const mask = fed && wholeLogits(fed, ...kept.shown, kept.low, known.outside);
  const output = await run({ ...kept.tensors, ...promptTensors(kept, points, box, mask) });
  const chosen = multimask ? MULTIPLE : SINGLE;
  let scores = chosen.map((candidate) => output.iou_predictions.data[candidate]);
  const best = chosen[Math.max(scores.indexOf(Math.max(...scores)), 0)]; // the first one where a score is no number
  const answering = fusion === "hq" ? [best] : chosen; // of HQ one mask, whichever of SAM's it would be added to
  scores = answering.map((candidate) => output.iou_predictions.data[candidate]);
  const clicks = clicksInLogits(kept, points);
  const logits = answering.map((candidate) => fused(output, candidate, fusion, kept, clicks, fed));
  const answer = ++lastAnswer;
  const outside = fusion === "sum" ? 2 * OUTSIDE : OUTSIDE;
  remember(answers, answer, ANSWERS_KEPT, { logits, outside });
  const masks = logits.map((candidate, at) => ({
    mask: maskOfLogits(candidate, kept.shown[1].made, kept.columns, kept.rows),
    score: scores[at],
  }));
  for (const value of Object.values(output)) if (value.location === "gpu-buffer") value.dispose();
  return { answer, masks, ms: performance.now() - begin };
}

function promptTensors({ scale, low }, points, box, mask) {
  const coords = points.flatMap(([x, y]) => [x * scale[0], y * scale[1]]);
  const labels = points.map((point) => point[2]);
  if (box) {
    coords.push(box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]);
    labels.push(...BOX_CORNERS);
  } else {
    coords.push(0, 0);
    labels.push(PAD_TOKEN);
  }
  return {
    point_coords: new ort.Tensor("float32", Float32Array.from(coords), [1, labels.length, 2]),
    point_labels: new ort.Tensor("float32", Float32Array.from(labels), [1, labels.length]),
    mask_input: new ort.Tensor("float32", mask ?? new Float32Array(low * low), [1, 1, low, low]),
    has_mask_input: new ort.Tensor("float32", Float32Array.of(mask ? 1 : 0), [1]),
  };
}

/** Points in logits from the corner of the first one; the middle of a pixel is half a pixel from its coordinate. */
function clicksInLogits({ scale, low }, points) {
  const toLogits = (place, axis) => ((place * scale[axis] + 0.5) * low) / frame;
  return points.map(([x, y, label]) => [toLogits(x, 0), toLogits(y, 1), label]);
}

/** A candidate's logits. A file of one fusion has `low_res_masks`, a file of all has SAM's and HQ's. */
function fused(output, candidate, fusion, { shown: [rows, columns] }, clicks, before) {
  const part = (name) => {
    const { data, dims } = output[name];
    const size = dims[2] * dims[3];
    const at = Math.min(candidate, dims[1] - 1);
    return data.slice(at * size, (at + 1) * size);
  };
  if (!("low_res_masks_sam" in output)) return part("low_res_masks");
  const [hq, sam] = [part("low_res_masks_hq"), part("low_res_masks_sam")];
  if (fusion === "sum") for (let at = 0; at < hq.length; at++) hq[at] += sam[at];
  return heedClicks(hq, sam, { stride: columns.made, width: columns.right, height: rows.right }, clicks, before);
}

function remember(map, key, most, value) {
  map.delete(key);
  map.set(key, value);
  if (map.size > most) map.delete(map.keys().next().value);
}

const KINDS = { start, embed, predict };

self.onmessage = async ({ data }) => {
  try {
    const result = await KINDS[data.kind](data);
    const buffers = result?.masks?.map(({ mask }) => mask.bits.buffer) ?? [];
    self.postMessage({ id: data.id, result }, buffers);
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};

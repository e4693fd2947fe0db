// Runs the exported models off the page's own thread: {id, kind, …} in, {id, …} out, one request at a time.
import * as ort from "./onnxruntime/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./onnxruntime/", import.meta.url).href;

const sessions = new Map(); // path → InferenceSession

let last = Promise.resolve();
self.addEventListener("message", ({ data }) => {
  last = last.then(() => answer(data));
});

async function answer({ id, model, wave }) {
  try {
    self.postMessage({ id, ...(await run(model, wave)) });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
}

async function run(model, wave) {
  const session = sessions.get(model.path) ?? (await open(model));
  const feeds = {
    wave: new ort.Tensor("float32", wave, [1, wave.length]),
    lengths: new ort.Tensor("int64", BigInt64Array.from([BigInt(wave.length)]), [1]),
  };
  const begin = performance.now();
  const results = await session.run(feeds);
  const milliseconds = performance.now() - begin;
  const outputs = session.outputNames.map((name) => Float32Array.from(results[name].data));
  for (const tensor of [...Object.values(results), ...Object.values(feeds)]) tensor.dispose();
  return { outputs, milliseconds };
}

async function open(model) {
  const response = await fetch(new URL(model.path, import.meta.url));
  if (!response.ok) throw new Error(`${model.path} is missing (${response.status}): build the site again.`);
  const bytes = await response.arrayBuffer();
  // Only secure pages (https and the loopback) can compute digests; elsewhere the engine's own checks have to do.
  if (self.crypto.subtle && (await sha256(bytes)) !== model.sha256) {
    throw new Error(`${model.path} is damaged or cut short: build the site again.`);
  }
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`${model.path} cannot be opened (${error.message}): build the site again.`);
  }
  sessions.set(model.path, session);
  return session;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

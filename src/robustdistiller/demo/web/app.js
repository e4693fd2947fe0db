// The page: choices → contaminated speech → pictures, sound, and every model's answer.
import { RATE, contaminate, highPass } from "./acoustics.js";
import { Player, decode, record } from "./audio.js";
import { drawSpectrogram } from "./spectrogram.js";

const RECORD_SECONDS = 3;
const SHOWN = 3; // labels per model
const find = (id) => document.getElementById(id);

const player = new Player();
const engine = startEngine();
const rooms = new Map(); // path → {samples, direct}
const sounds = new Map(); // path → Float32Array
const state = { site: null, speech: null, noise: null, contaminated: null, enhanced: null, answers: [] };
let turn = 0; // of the newest change: results of older ones are dropped
let running = 0; // changes that are still being worked on

/** The worker as a function: (model, wave) → {outputs, milliseconds}. */
function startEngine() {
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  let count = 0;
  worker.addEventListener("message", ({ data: { id, error, ...result } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  });
  worker.addEventListener("error", () => complain("The engine cannot start in this browser: use a recent one."));
  return (model, wave) =>
    new Promise((resolve, reject) => {
      const id = count++;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, model, wave });
    });
}

function complain(message) {
  find("alert").textContent = message;
}

/** Run something that a reader asked for; what goes wrong is one sentence at the top. */
async function attempt(work) {
  complain("");
  running++;
  find("answers").setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    complain(error.message ?? String(error));
  }
  if (!--running) find("answers").setAttribute("aria-busy", "false");
}

async function bytesOf(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing (${response.status}): build the site again.`);
  return response.arrayBuffer();
}

async function soundOf(path) {
  if (!sounds.has(path)) sounds.set(path, await decode(await bytesOf(path), path));
  return sounds.get(path);
}

async function roomOf({ path, direct }) {
  if (!rooms.has(path)) rooms.set(path, { samples: new Float32Array(await bytesOf(path)), direct });
  return rooms.get(path);
}

/** Contaminate anew and show everything that follows from it. */
async function update() {
  const mine = ++turn;
  const place = Number(find("room").value);
  const room = place ? await roomOf(state.site.rooms[place - 1]) : null;
  if (mine !== turn) return;
  const snr = Number(find("snr").value);
  state.contaminated = contaminate(state.speech, { room, noise: state.noise, snr });
  state.enhanced = null;
  drawSpectrogram(find("picture-contaminated"), state.contaminated);
  await ask(mine);
  if (mine !== turn) return;
  await enhance(mine);
}

/** Every model's answer to the contaminated speech. */
async function ask(mine) {
  const task = find("task").value;
  const answers = [];
  for (const model of state.site.models) {
    const file = model.tasks[task];
    if (!file) continue;
    let result;
    try {
      result = await engine(file, state.contaminated);
    } catch (error) {
      complain(error.message); // the other models go on
      continue;
    }
    if (mine !== turn) return;
    const { outputs, milliseconds } = result;
    const slots = Object.entries(file.labels).map(([slot, labels], k) => ({
      slot,
      ranked: labels.map((label, n) => ({ label, probability: outputs[k][n] })).sort(byProbability),
      probabilities: Array.from(outputs[k]),
    }));
    answers.push({ model, file, slots, milliseconds });
    showAnswer(answers.at(-1));
  }
  state.answers = answers;
}

const byProbability = (a, b) => b.probability - a.probability;

async function enhance(mine) {
  const model = state.site.models.find((candidate) => candidate.enhancer);
  if (!model) return;
  const { outputs, milliseconds } = await engine(model.enhancer, state.contaminated);
  if (mine !== turn) return;
  state.enhanced = outputs[0];
  drawSpectrogram(find("picture-enhanced"), state.enhanced);
  find("enhanced-about").textContent = `by ${model.name}, ${milliseconds.toFixed(0)} ms`;
  find("play-enhanced").disabled = false;
}

/** A card for every model, empty: their places are there before the first answer. */
function showModels() {
  const task = find("task").value;
  const cards = state.site.models
    .filter((model) => model.tasks[task])
    .map((model) => {
      const card = element("article", { className: "model", id: `model-${model.name}` });
      const { bytes, precision } = model.tasks[task];
      card.append(
        element("h3", { textContent: model.name }),
        element("p", {
          className: "soft",
          textContent: `${(model.parameters / 1e6).toFixed(2)} M parameters · ${(bytes / 1e6).toFixed(1)} MB ${precision}`,
        }),
        element("div", { className: "result" }),
      );
      return card;
    });
  find("answers").replaceChildren(...cards);
}

function showAnswer({ model, slots, milliseconds }) {
  const rows = slots.flatMap(({ ranked }) =>
    ranked.slice(0, slots.length > 1 ? 1 : SHOWN).map(({ label, probability }) => {
      const row = element("div", { className: "row" });
      row.append(
        element("span", { textContent: label, title: label }),
        element("meter", { min: 0, max: 1, value: probability, ariaLabel: `probability of ${label}` }),
        element("span", { textContent: `${(100 * probability).toFixed(1)} %` }),
      );
      return row;
    }),
  );
  const words = slots.map(({ ranked }) => ranked[0].label).join(" ");
  find(`model-${model.name}`)
    .querySelector(".result")
    .replaceChildren(
      element("p", { className: "answer", textContent: words }),
      ...rows,
      element("p", { className: "soft", textContent: `${milliseconds.toFixed(0)} ms` }),
    );
}

function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, textContent]) => element("option", { value, textContent })));
  select.disabled = false;
}

async function useSpeech(wave, about) {
  state.speech = wave;
  find("speech-about").textContent = `${about} · ${(wave.length / RATE).toFixed(1)} s`;
  drawSpectrogram(find("picture-clean"), wave);
  for (const id of ["play-clean", "play-contaminated"]) find(id).disabled = false;
  await update();
}

async function chooseUtterance() {
  const utterance = state.site.utterances[Number(find("utterance").value)];
  await useSpeech(await soundOf(utterance.path), utterance.about);
}

async function chooseNoise() {
  const path = find("noise").value;
  state.noise = path ? await soundOf(path) : null;
  find("snr").disabled = !path;
  await update();
}

function showSliders() {
  const place = Number(find("room").value);
  const { noise, rooms } = state.site;
  find("snr-value").textContent = `${find("snr").value} dB`;
  find("room-value").textContent = place ? `T60 ${rooms[place - 1].t60.toFixed(2)} s` : "dry";
}

function listen() {
  const on = (id, event, work) => find(id).addEventListener(event, () => attempt(work));
  on("utterance", "change", chooseUtterance);
  on("noise", "change", chooseNoise);
  on("task", "change", async () => {
    showModels();
    await update();
  });
  for (const id of ["snr", "room"]) {
    on(id, "input", async () => {
      showSliders();
      await update();
    });
  }
  on("file", "change", async () => {
    const [file] = find("file").files;
    if (file) await useSpeech(await decode(await file.arrayBuffer(), file.name), file.name);
  });
  on("noise-file", "change", async () => {
    const [file] = find("noise-file").files;
    if (!file) return;
    sounds.set(file.name, highPass(await decode(await file.arrayBuffer(), file.name)));
    find("noise").append(element("option", { value: file.name, textContent: file.name }));
    find("noise").value = file.name;
    await chooseNoise();
  });
  on("record", "click", async () => {
    find("record").disabled = true;
    find("record").textContent = "Recording…";
    try {
      await useSpeech(await record(RECORD_SECONDS), "your recording");
    } finally {
      find("record").disabled = false;
      find("record").textContent = `Record ${RECORD_SECONDS} s`;
    }
  });
  for (const [id, wave] of [
    ["clean", () => state.speech],
    ["contaminated", () => state.contaminated],
    ["enhanced", () => state.enhanced],
  ]) {
    on(`play-${id}`, "click", async () => player.play(wave()));
  }
}

await attempt(async () => {
  state.site = JSON.parse(new TextDecoder().decode(await bytesOf("site.json")));
  const { site } = state;
  options(find("utterance"), site.utterances.map(({ title }, k) => [k, title]));
  options(find("noise"), [["", "none"], ...site.noises.map(({ path, title }) => [path, title])]);
  options(find("task"), site.tasks.map((task) => [task, task]));
  find("noise").value = site.noises[0]?.path ?? "";
  find("room").max = site.rooms.length;
  find("room").disabled = !site.rooms.length;
  find("about").textContent = site.about;
  showSliders();
  showModels();
  listen();
  state.noise = find("noise").value ? await soundOf(find("noise").value) : null;
  find("snr").disabled = !state.noise;
  const begin = performance.now();
  await chooseUtterance();
  state.firstAnswer = performance.now() - begin;
});
document.documentElement.dataset.ready = "true";
window.robustdistillerDemo = state; // for the browser tests: what is heard and what was answered
